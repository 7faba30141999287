"""Read texts that belong to a task, but have no expected answer: the router needs no more."""

from __future__ import annotations

import logging
import random
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dynamo_mtl.data.data_config import DataConfig
from dynamo_mtl.data.locations import LINES
from dynamo_mtl.data.readers import read_rows
from dynamo_mtl.data.text_files import open_text
from dynamo_mtl.errors import DataError
from dynamo_mtl.tasks.encoding import clean
from dynamo_mtl.tasks.tables import rooted
from dynamo_mtl.tasks.task import Example, Task

logger = logging.getLogger(__name__)


def read_unlabelled(task: Task, row: Mapping[str, Any], where: str) -> Example:
    """Turn a row into an example without a target. Other columns than those of the input are not looked at.

    A column may have the name that the task's configuration gives it, or any that is known for it.

    Raises:
        DataError: naming ``where``, if it has no text, or no context where the task needs one.
    """
    found: dict[str, str] = {}
    for column, part in task.input_columns.items():
        value = task.input_value(row, column)
        if part not in ("text", "context") or (value is None and part == "context" and not task.needs_context):
            continue
        if not isinstance(value, str) or not value.strip():
            seen = f"found {value!r:.60}" if value is not None else f"found {', '.join(map(str, row)) or 'none'}"
            raise DataError(
                f"{where}: task '{task.name}' needs the {part} of its input in a column '{task.names_of(column)[0]}', "
                f"{seen}",
                f"no {part}",
            )
        found[part] = clean(value)
    return Example(found["text"], found.get("context"), "")


def unlabelled_examples(task: Task, location: str, split: str, config: DataConfig, most: int) -> list[Example]:
    """Texts of a file, or of a split of a folder: all of them, or a random choice of ``most`` that is always the same.

    Args:
        task: whose columns hold the texts.
        location: a table; a file that ends with one of ``LINES``; a folder; a hub id.
        split: of a folder.
        config: root folder, and what to do with rows that cannot be used.
        most: number of examples.

    Raises:
        DataError: it cannot be read, or has no text.
    """
    place = rooted(location, config.root)
    skipped: dict[str, int] = {}

    def skip(error: DataError) -> None:
        if config.bad_rows == "refuse":
            raise error
        skipped[error.kind] = skipped.get(error.kind, 0) + 1

    kept: list[Example] = []
    rng, count = random.Random(0), 0
    is_lines = place.lower().endswith(LINES)
    rows = _lines(task, Path(place)) if is_lines else read_rows(place, split, config, skip, task.config.reading)
    for row, where in rows:
        try:
            example = read_unlabelled(task, row, where)
        except DataError as error:
            skip(error)
            continue
        count += 1
        if len(kept) < most:
            kept.append(example)
        elif (number := rng.randrange(count)) < most:  # reservoir sampling (Vitter 1985, algorithm R)
            kept[number] = example
    if skipped:
        reasons = ", ".join(f"{n} with {kind}" for kind, n in skipped.items())
        logger.warning("%s: %d rows are left out: %s", place, sum(skipped.values()), reasons)
    if not kept:
        raise DataError(f"{place}: has no texts of task '{task.name}'; it needs at least one row")
    return kept


def _lines(task: Task, path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The lines of a text file as rows."""
    if task.needs_context:
        raise DataError(
            f"{path}: an input of task '{task.name}' has two parts, and a line has one; give a table with the columns "
            f"{' and '.join(task.input_columns)}"
        )
    column = task.names_of(next(own for own, part in task.input_columns.items() if part == "text"))[0]
    try:
        with open_text(path, task.config.reading) as text:
            for number, line in enumerate(text.file, start=1):
                if line.strip():
                    yield {column: line.strip()}, f"{path}, line {number}"
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
