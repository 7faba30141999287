"""The built-in sample corpus: synthetic rows from small grammars, written by this project.

Each task type has a module here with ``rows(split, seed)``. Splits differ by template: no test row is a training row
with a word changed. Same seed, same rows. The corpus shows that everything works; it says nothing of real quality.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from dynamo_mtl.errors import DataError

SAMPLE = "sample"
"""Data path that stands for this corpus."""


def sample_rows(task_type: str, split: str, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of a split, in the columns of the task type's real data set.

    Raises:
        DataError: no such split, or no sample corpus for the type.
    """
    name = f"{__name__}.{task_type}"
    if importlib.util.find_spec(name) is None:
        raise DataError(
            f"{SAMPLE}: there is no sample corpus for task type '{task_type}'; give a file, folder or hub id"
        )
    if split not in ("train", "validation", "test"):
        raise DataError(f"{SAMPLE}: no split '{split}'; use train, validation or test")
    return importlib.import_module(name).rows(split, seed)
