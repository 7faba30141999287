"""Typed questions by the suite of ``jevbench``: whether all are answered in form, and how coherent the answers are.

    python benchmarks/coherence.py CHECKPOINT --output results/coherence.json
    python benchmarks/coherence.py CHECKPOINT --output results/coherence.json --report REPORT

The suite asks ``/v1/systemone`` what follows from other answers: the same question in other words, its negation, its
options in another order, alone and in a batch. It knows no right answers, so it measures no accuracy. The checkpoint
needs a task of multiple choice. ``--report`` reads what ``jevbench eval --out`` has written before.
"""

import argparse
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from harness import machine
from load import server

from dynamo_mtl.checkpoint.metadata import read_metadata
from dynamo_mtl.messages import log_to_console
from dynamo_mtl.training.provenance import source_revision

CONNECTIONS = 2


def main() -> None:
    """Ask, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--report", type=Path, help="made before, for this checkpoint")
    given = parser.parse_args()
    log_to_console(logging.INFO)
    report = given.report or given.output.with_suffix(".report.json")
    if given.report is None:
        with server(given.checkpoint) as (_, port, _, _):
            command = [
                sys.executable, "-m", "jevbench", "eval", "--url", f"http://127.0.0.1:{port}/v1/systemone", "--model",
                "dynamo", "--no-cache", "--concurrency", str(CONNECTIONS), "--out", str(report), "-v",
            ]  # fmt: skip
            subprocess.run(command, check=True)
    result = {
        **summary(json.loads(report.read_text(encoding="utf-8"))),
        "tasks": read_metadata(given.checkpoint).tasks,
        "commit": source_revision(),
        "machine": machine(torch.device("cpu")),
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """Number of requests and of those that failed, and shares of tests that hold: in all, and by kind."""
    scores, ran = report["scores"], report["result"]
    return {
        "suite": ran["suite"]["name"],
        "jevbench": ran["jevbench_version"],
        "requests": ran["requests"],
        "errors": len(ran["errors"]),
        "incomplete": list(scores["incomplete"]),
        "overall": scores["overall"],
        "batch_independence": scores["pillars"]["BAT"],
        "pillars": scores["pillars"],
        "groups": scores["groups"],
        "minutes": ran["wall_seconds"] / 60,
    }


if __name__ == "__main__":
    main()
