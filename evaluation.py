"""Routing analysis, and ``python evaluation.py CHECKPOINT``, which is the same as ``dynamo evaluate CHECKPOINT``."""

import sys

from dynamo_mtl.cli import main
from dynamo_mtl.evaluation.analyzer import create_routing_analyzer, routing_dataloader

__all__ = ["create_routing_analyzer", "routing_dataloader"]

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
