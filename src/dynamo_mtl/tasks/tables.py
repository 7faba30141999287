"""Tables of examples: a task's data, validated and memory-mapped."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets

from dynamo_mtl.data.data_config import DATA_PATH, DataConfig
from dynamo_mtl.data.locations import find_files, is_sample, is_saved
from dynamo_mtl.data.readers import hub_commit
from dynamo_mtl.data.samples import SAMPLE
from dynamo_mtl.data.sources import COLUMNS, open_table, sample_of
from dynamo_mtl.errors import ConfigError, DataError
from dynamo_mtl.storage import at_home
from dynamo_mtl.tasks.task import Example, Task

TRAIN = "train"
UNREAD = {
    "training", "generation", "train_examples", "validation_examples", "train_file", "validation_file", "instructions",
    "evaluation_instructions", "target_vocabulary", "copy_words", "max_target_length", "label_smoothing", "loss_weight",
    "requires_instruction", "classifier_dropout", "validation_share", "description", "examples",
    "top_labels", "precision", "thresholds", "class_weights", "pooling", "shift_files", "router_files",
}  # fmt: skip
"""Settings that do not change how a row is read."""


def open_task_table(task: Task, split: str, config: DataConfig, seed: int) -> datasets.Dataset:
    """The examples of a split, cut to the configured number by a seeded sample.

    Raises:
        ConfigError: no data path for the task.
        DataError: missing file or column, unreadable row, empty split.
    """
    settings = task.config
    location, files_of = task_location(task, split, config), source_split(task, split, config)
    key = f"{settings.type} {settings.model_dump_json(exclude=UNREAD)} {_reader_revision(type(task))}"
    table = open_table(location, files_of, task.read, key, config, settings.reading)
    parts = split_of_file(task, config)
    if parts is not None:
        rows = [
            row for row, example in enumerate(all_examples(table)) if parts.is_held_out(example) != (split == TRAIN)
        ]
        if not rows:
            share = settings.validation_share
            raise DataError(f"{location}: {len(table)} rows are too few to hold out a share of {share} for validation")
        table = table.select(rows)
    return sample_of(table, settings.train_examples if split == TRAIN else settings.validation_examples, seed)


@functools.cache
def _reader_revision(kind: type[Task]) -> str:
    """Hash of the source files that say how a type reads rows. If one changes, prepared rows are read again."""
    digest = hashlib.sha256()
    own = dict.fromkeys(base.__module__ for base in kind.__mro__ if issubclass(base, Task))
    used = (str(getattr(one, "__module__", "")) for module in own for one in vars(sys.modules[module]).values())
    for module in dict.fromkeys([*own, *sorted({name for name in used if name.startswith(f"{__package__}.")})]):
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
    if train != validation:
        return False
    path = Path(train)
    return path.is_file() or is_saved(path) or (path.is_dir() and _lacks_validation(task, config, train))


def _lacks_validation(task: Task, config: DataConfig, folder: str) -> bool:
    """Whether a folder has no validation files, so that a share of its training files is held out."""
    if task.config.validation_share is None or task.config.validation_file or task.config.train_file:
        return False
    try:
        find_files(folder, "validation")
    except DataError:
        return True
    return False


class FileSplit:
    """Chooses which rows of a single file are held out for validation: a share of every label, always the same rows.

    ``is_held_out`` must be called in the order of the file. Rows that are appended later do not change the choice for
    earlier ones. Rows of one ``Task.split_group`` (copies of a text, questions about one passage) follow the first.
    """

    def __init__(self, task: Task, share: float) -> None:
        self._task, self._share = task, share
        self._sides: dict[bytes, bool] = {}
        self._counts: Counter[str] = Counter()

    def is_held_out(self, example: Example) -> bool:
        """Whether the next row of the file belongs to the validation data."""
        group = hashlib.sha256(self._task.split_group(example).encode()).digest()[:16]
        if group not in self._sides:
            label = self._task.label(example) or ""
            self._sides[group] = self._is_chosen(label, self._counts[label])
            self._counts[label] += 1
        return self._sides[group]

    def _is_chosen(self, label: str, number: int) -> bool:
        """Choose one of every ``1 / share`` rows of a label: the second of the first block, later by a hash."""
        block = math.floor(number * self._share + 1e-9)
        first, end = (math.ceil(edge / self._share - 1e-9) for edge in (block, block + 1))
        digest = hashlib.sha256(f"{block} {label}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") % (end - first) if block else min(1, end - 1)
        return number == first + place


def split_of_file(task: Task, config: DataConfig) -> FileSplit | None:
    """The split of a single file of which a share is held out; None if the data is not such a file."""
    share = task.config.validation_share
    return FileSplit(task, share) if share is not None and _is_one_file(task, config) else None


def source_split(task: Task, split: str, config: DataConfig) -> str:
    """The split whose files hold the rows of ``split``: ``train`` if validation data is held out of the same file."""
    return TRAIN if split != TRAIN and split_of_file(task, config) is not None else split


def data_revision(task: Task, config: DataConfig) -> str | None:
    """The commit of a task's data set on the hub; None for local data."""
    location = task_location(task, TRAIN, config)
    return None if is_sample(location) or Path(location).exists() else hub_commit(location, config)


def task_location(task: Task, split: str, config: DataConfig) -> str:
    """Where the rows of a split are: a path, a hub id or the sample corpus."""
    override = {TRAIN: task.config.train_file, "validation": task.config.validation_file}.get(split)
    path = override or config.paths.get(task.name)
    if path is None:
        raise ConfigError(f"data.{task.name}{DATA_PATH}: missing; give a file, a folder, a hub id or '{SAMPLE}'")
    if is_sample(path):
        return f"{SAMPLE}:{task.config.type}"
    location = rooted(path, config.root)
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


def rows_hash(*tables: datasets.Dataset, unlabelled: Sequence[Example] = ()) -> str:
    """SHA-256 of all rows and unlabelled inputs, in their order."""
    digest = hashlib.sha256()
    for table in tables:
        for first in range(0, len(table), 1000):
            rows = table[first : first + 1000]
            # A column that no row uses does not count, so that older hashes stay right.
            used = [rows[name] for name in COLUMNS if name != "choices" or any(rows[name])]
            digest.update(repr(used).encode())
    for example in unlabelled:
        digest.update(repr((example.text, example.context)).encode())
    return digest.hexdigest()


def first_examples(table: datasets.Dataset, limit: int | None = None) -> list[Example]:
    """The first ``limit`` examples of a table, or all."""
    return _examples(table[:limit])


def _examples(rows: dict[str, list[Any]]) -> list[Example]:
    return [Example(*row) for row in zip(*(rows[name] for name in COLUMNS), strict=True)]


def rooted(path: str, root: str | None) -> str:
    """A data path from the root folder; a hub id stays one if there is no root."""
    expanded = at_home(path)
    if root is None or expanded.is_absolute():
        return str(expanded) if path.startswith("~") else path
    return str((at_home(root) / path).absolute())  # never taken for the id of a hub data set
