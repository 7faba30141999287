"""DYNAMO: many text tasks over one small frozen encoder, routed per input in a single pass.

Most programs need ``Dynamo`` with the classes of tasks (train a model), ``DynamoInference`` (use one) or
``load_config``. They are resolved on first use, so that importing the package stays cheap and loads no PyTorch.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from dynamo_mtl.cores import settle
from dynamo_mtl.moved import find_moved_modules

if TYPE_CHECKING:
    from dynamo_mtl.config import load_config
    from dynamo_mtl.estimator import Dynamo
    from dynamo_mtl.inference.api import DynamoInference
    from dynamo_mtl.task_data import (
        Classification,
        CodeGeneration,
        MultiLabel,
        MultipleChoice,
        QuestionAnswering,
        Regression,
        Summarization,
        TaskData,
        TokenClassification,
        Translation,
    )

# How many compiled products oneDNN keeps, read when it makes the first one. Its own number, 1,024, is too small for
# training, where batches have many shapes.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
settle(os.environ)
find_moved_modules()

__version__ = "0.1.0"
__all__ = [
    "Classification",
    "CodeGeneration",
    "Dynamo",
    "DynamoInference",
    "MultiLabel",
    "MultipleChoice",
    "QuestionAnswering",
    "Regression",
    "Summarization",
    "TaskData",
    "TokenClassification",
    "Translation",
    "load_config",
]
_ELSEWHERE = {"Dynamo": "estimator", "DynamoInference": "inference.api", "load_config": "config"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.{_ELSEWHERE.get(name, 'task_data')}"), name)
    raise AttributeError(f"module 'dynamo_mtl' has no attribute '{name}'")
