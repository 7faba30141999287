"""DYNAMO: many text tasks over one small frozen encoder, routed per input in a single pass.

The two names that most programs need are ``DynamoInference`` (use a trained model) and ``load_config``. They are
resolved on first use, so that importing the package stays cheap and loads no PyTorch.
"""

import os
from typing import TYPE_CHECKING, Any

from dynamo_mtl.cores import settle
from dynamo_mtl.moved import find_moved_modules

if TYPE_CHECKING:
    from dynamo_mtl.config import load_config
    from dynamo_mtl.inference.api import DynamoInference

# How many compiled products oneDNN keeps, read when it makes the first one. Its own number, 1,024, is too small for
# training, where batches have many shapes.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
settle(os.environ)
find_moved_modules()

__version__ = "0.1.0"
__all__ = ["DynamoInference", "load_config"]


def __getattr__(name: str) -> Any:
    if name == "DynamoInference":
        from dynamo_mtl.inference.api import DynamoInference

        return DynamoInference
    if name == "load_config":
        from dynamo_mtl.config import load_config

        return load_config
    raise AttributeError(f"module 'dynamo_mtl' has no attribute '{name}'")
