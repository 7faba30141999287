"""Tables of examples: a task's data, validated and memory-mapped."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets

from dynamo_mtl.data.samples import SAMPLE
from dynamo_mtl.data.sources import COLUMNS, DATA_PATH, DataConfig, is_sample, open_table, sample_of
from dynamo_mtl.errors import ConfigError, DataError
from dynamo_mtl.storage import at_home
from dynamo_mtl.tasks.task import Example, Task

TRAIN = "train"
UNREAD = {
    "training", "generation", "train_examples", "validation_examples", "train_file", "validation_file", "instructions",
    "evaluation_instructions", "target_vocabulary", "copy_words", "max_target_length", "label_smoothing", "loss_weight",
    "requires_instruction", "classifier_dropout", "validation_share",
}  # fmt: skip
"""Settings that do not change how a row is read."""


def open_task_table(task: Task, split: str, config: DataConfig, seed: int) -> datasets.Dataset:
    """The examples of a split, cut to the configured number by a seeded sample.

    Raises:
        ConfigError: no data path for the task.
        DataError: missing file or column, unreadable row, empty split.
    """
    settings = task.config
    location = task_location(task, split, config)
    key = f"{settings.type} {settings.model_dump_json(exclude=UNREAD)} {_reader_revision(type(task))}"
    table = open_table(location, split, task.read, key, config)
    belongs = part_of_file(task, split, config)
    if belongs is not None:
        rows = [row for row, text in enumerate(table["text"]) if belongs(text)]
        if not rows:
            share = settings.validation_share
            raise DataError(f"{location}: {len(table)} rows are too few to hold out a share of {share} for validation")
        table = table.select(rows)
    return sample_of(table, settings.train_examples if split == TRAIN else settings.validation_examples, seed)


@functools.cache
def _reader_revision(kind: type[Task]) -> str:
    """Of the source files that say how a type reads rows: prepared rows are read anew when one of them changes."""
    digest = hashlib.sha256()
    for module in dict.fromkeys(base.__module__ for base in kind.__mro__ if issubclass(base, Task)):
        with suppress(OSError, TypeError, KeyError):  # typed into an interpreter, or without its source
            digest.update(inspect.getsource(sys.modules[module]).encode())
    return digest.hexdigest()[:16]


def check_splits(task: Task, config: DataConfig) -> None:
    """Refuse one file as both training and validation data. Raises ``ConfigError``."""
    if _is_one_file(task, config) and task.config.validation_share is None:
        raise ConfigError(
            f"data.{task.name}{DATA_PATH}: {task_location(task, TRAIN, config)} is a single file, which would be both "
            f"training and validation data; name the other one with tasks.{task.name}.validation_file, or hold out a "
            f"part of it with tasks.{task.name}.validation_share"
        )


def _is_one_file(task: Task, config: DataConfig) -> bool:
    train, validation = (task_location(task, split, config) for split in (TRAIN, "validation"))
    return train == validation and Path(train).is_file()


def part_of_file(task: Task, split: str, config: DataConfig) -> Callable[[str], bool] | None:
    """Whether a text belongs to a split of a single file of which a share is held out; None where there is no such.

    A text's hash decides, so that copies of it stay together, and each stays where it is as the file grows.
    """
    share = task.config.validation_share
    if share is None or not _is_one_file(task, config):
        return None
    limit = int(share * 2**32)

    def belongs(text: str) -> bool:
        return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") < limit) == (split != TRAIN)

    return belongs


def task_location(task: Task, split: str, config: DataConfig) -> str:
    """Where the rows of a split are: a path, a hub id or the sample corpus."""
    override = {TRAIN: task.config.train_file, "validation": task.config.validation_file}.get(split)
    path = override or config.paths.get(task.name)
    if path is None:
        raise ConfigError(f"data.{task.name}{DATA_PATH}: missing; give a file, a folder, a hub id or '{SAMPLE}'")
    if is_sample(path):
        return f"{SAMPLE}:{task.config.type}"
    location = _rooted(path, config.root)
    if override is None and split not in (TRAIN, "validation") and Path(location).is_file():
        raise ConfigError(
            f"data.{task.name}{DATA_PATH}: {location} is one file, without a split '{split}'; give a folder, or the "
            f"file as tasks.{task.name}.validation_file with --split validation"
        )
    return location


def example_at(table: datasets.Dataset, index: int) -> Example:
    """One example of a table."""
    row: dict[str, Any] = table[index]
    return Example(*(row[name] for name in COLUMNS))


def all_examples(table: datasets.Dataset) -> Iterator[Example]:
    """All examples of a table, a thousand at a time in memory."""
    for first in range(0, len(table), 1000):
        yield from _examples(table[first : first + 1000])


def first_examples(table: datasets.Dataset, limit: int | None = None) -> list[Example]:
    """The first ``limit`` examples of a table, or all."""
    return _examples(table[:limit])


def _examples(rows: dict[str, list[Any]]) -> list[Example]:
    return [Example(*row) for row in zip(*(rows[name] for name in COLUMNS), strict=True)]


def _rooted(path: str, root: str | None) -> str:
    expanded = at_home(path)
    if root is None or expanded.is_absolute():
        return str(expanded) if path.startswith("~") else path
    return str((at_home(root) / path).absolute())  # never taken for the id of a hub data set
