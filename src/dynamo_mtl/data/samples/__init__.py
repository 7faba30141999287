"""The built-in sample corpus: synthetic rows from small grammars, written by this project.

Each task type has a module here with ``make(rng, split)``. Splits use different templates, so no test row is a training
row with a word changed. The same seed gives the same rows. The corpus shows that the code works. It does not measure
quality.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dynamo_mtl.errors import DataError

SAMPLE = "sample"
"""Data path that stands for this corpus."""
SIZES = {"train": 3000, "validation": 300, "test": 300}
"""Rows of each task in each split."""


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
    if split not in SIZES:
        raise DataError(f"{SAMPLE}: no split '{split}'; use {', '.join(SIZES)}")
    make: Callable[[random.Random, str], dict[str, Any]] = importlib.import_module(name).make
    yield from _distinct(make, split, random.Random(f"{task_type} {split} {seed}"))


def sample_revision(task_type: str) -> str:
    """Return a hash of the grammar, so that prepared rows of an older grammar are not used."""
    files = [Path(__file__), Path(__file__).with_name(f"{task_type}.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.exists())).hexdigest()


def _distinct(
    make: Callable[[random.Random, str], dict[str, Any]], split: str, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Draw until the split has as many distinct rows as it should."""
    seen: set[str] = set()
    while len(seen) < SIZES[split]:
        row = make(rng, split)
        key = repr(row)
        if key not in seen:
            seen.add(key)
            yield row


def with_articles(text: str) -> str:
    """The text with "an" before words that begin with a vowel."""
    return re.sub(r"\b([aA]) (?=[aeiou])", r"\1n ", text)


def capitalized(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]
