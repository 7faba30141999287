"""Guess the task of a table from the values of its columns. Column names decide only what values leave open."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from dynamo_mtl.data.columns import read_columns
from dynamo_mtl.data.data_config import DataConfig
from dynamo_mtl.data.locations import SPLIT_NAMES, find_files, is_saved
from dynamo_mtl.data.readers import read_rows
from dynamo_mtl.data.text_files import Reading
from dynamo_mtl.errors import ConfigError, DataError
from dynamo_mtl.messages import shortened
from dynamo_mtl.tasks.recognition import Guess, Table
from dynamo_mtl.tasks.registry import task_types
from dynamo_mtl.tasks.task import Task


class UnknownColumnError(ConfigError):
    """A column that was chosen is not in the table."""


def guess_task(
    path: Path,
    chosen: Mapping[str, str] | None = None,
    reading: Reading | None = None,
    name: str | None = None,
    kind: type[Task] | None = None,
) -> Guess:
    """Guess the task of a file from all its rows.

    Args:
        path: a file, or a folder with splits.
        chosen: our column → the file's column, where the user has chosen one.
        reading: how the file is written.
        name: name of the task; that of the file if None.
        kind: its type, where it is known.

    Raises:
        DataError: it cannot be read, or has no rows.
        ConfigError: no task fits, or several do; the message is a question that names them.
    """
    name = name or _name_of(path)
    rows = (row for row, _ in read_rows(_location(path), "train", DataConfig(), reading=reading or Reading()))
    columns, count = read_columns(rows)
    if not count:
        raise DataError(f"{path}: has no rows; the first line names the columns, each further one is an example")
    table = Table(path, columns, count, chosen or {})
    for own, given in table.chosen.items():
        if given not in columns:
            raise UnknownColumnError(f"--column: {path} has no column '{given}' for {own}; it has {shortened(columns)}")
    if any(column.name in column.counts or re.fullmatch(r"[\d.,-]+", column.name) for column in columns.values()):
        raise table.ask(
            f"its first line seems to be a row: {shortened(columns, 4)}; put a line with names of columns in "
            "front of it, or write the configuration by hand with tasks.NAME.reading.header"
        )
    kinds = sorted(task_types().values(), key=lambda one: one.recognition_rank) if kind is None else [kind]
    found = next((guess for one in kinds if (guess := one.recognise(table, name)) is not None), None)
    if found is None and kind is not None:
        raise table.ask(
            f"has the columns {shortened(table.columns)}, in which no examples of {kind.type} are found; its columns "
            f"are {', '.join(kind.column_names)}: say which is which"
        )
    if found is None:
        raise _nothing(table)
    found.held_out = _lacks_validation(path)
    return found


def _name_of(path: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", path.resolve().name.partition(".")[0])[:50] or "task"
    return name if name[0].isalpha() else f"task_{name}"  # not a number, which no key can be


def _location(path: Path) -> str:
    """A path that is never taken for the built-in corpus or a hub id."""
    return str(path) if path.is_absolute() or str(path).startswith(".") else f"./{path}"


def _lacks_validation(path: Path) -> bool:
    if path.is_dir() and not is_saved(path):
        try:
            find_files(_location(path), "validation")
        except DataError:
            return True
        return False
    return True


def _nothing(table: Table) -> ConfigError:
    texts = [column.name for column in table.columns.values() if column.is_text]
    names = [name for names in SPLIT_NAMES.values() for name in names]
    if len(texts) == 2 and table.path.stem.lower() not in names:
        return table.ask(
            f"'{texts[0]}' and '{texts[1]}' both hold texts: is one the translation (source, target) or the summary "
            "(document, summary) of the other? rename them so"
        )
    known = "; ".join(f"{kind}: {', '.join(task_types()[kind].column_names)}" for kind in sorted(task_types()))
    return table.ask(
        f"has the columns {shortened(table.columns)}, from which no task can be guessed; rename them, or write the "
        f"configuration by hand with tasks.NAME.columns. Types and their columns are {known}"
    )
