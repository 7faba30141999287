"""Read the rows of a table one after the other, with those that cannot be read in their places."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow
from pyarrow import ArrowException, parquet

from dynamo_mtl.data.delimited import column_names
from dynamo_mtl.data.files import SAVED, SUFFIXES, arrow_batches, file_rows
from dynamo_mtl.data.text_files import Reading, open_bytes
from dynamo_mtl.errors import ConfigError, DataError

AT_ONCE = 1000
"""Rows of a columnar file that are taken apart together."""
COLUMNAR = (".parquet", ".arrow")


class FileReading(Reading):
    """How a file to answer is written, where that cannot be detected."""

    place: ClassVar[str] = "--reading {}=…"


@dataclass(frozen=True)
class InputRow:
    """A row of a table."""

    values: Mapping[str, Any]
    error: DataError | None = None
    """Why it cannot be read."""


def read_input_rows(path: Path, reading: FileReading) -> Iterator[InputRow]:
    """Yield all rows of a file in their order.

    Raises:
        DataError: a file that cannot be read at all.
    """
    if path.suffix.lower() in COLUMNAR:
        yield from _columnar_rows(path)
        return
    refused: list[DataError] = []
    for row, _ in file_rows(path, reading, refused.append):
        yield from (InputRow({}, error) for error in refused)
        refused.clear()
        yield InputRow(row)
    yield from (InputRow({}, error) for error in refused)


def _columnar_rows(path: Path) -> Iterator[InputRow]:
    number = 0
    with arrow_batches(path) as (_, batches):
        for batch in batches:
            for start in range(0, batch.num_rows, AT_ONCE):
                own = batch.slice(start, AT_ONCE)
                try:
                    rows = map(InputRow, own.to_pylist())
                except (ArrowException, ValueError, OverflowError):
                    rows = (
                        _alone(own.slice(place, 1), f"{path}, row {number + place + 1}") for place in range(len(own))
                    )
                yield from rows
                number += own.num_rows


def _alone(row: pyarrow.RecordBatch, where: str) -> InputRow:
    try:
        return InputRow(row.to_pylist()[0])
    except (ArrowException, ValueError, OverflowError) as error:
        said = str(error).partition("\n")[0]
        return InputRow({}, DataError(f"{where}: a value cannot be read ({said:.100})", "unreadable cell"))


def header_of(path: Path, reading: FileReading) -> list[str]:
    """Names of the columns of a delimited file without rows; none of another file."""
    is_delimited = path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv"))
    return column_names(path, reading) if is_delimited else []


def schema_of(path: Path) -> pyarrow.Schema | None:
    """The schema of a file that has one, without what ``datasets`` notes of its columns."""
    if path.suffix.lower() not in COLUMNAR:
        return None
    with arrow_batches(path) as (schema, _):
        twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{path}: the column '{twice}' is there twice; rename one")
        noted = {key: value for key, value in (schema.metadata or {}).items() if key != b"huggingface"}
        return schema.with_metadata(noted or None)


def count_rows(path: Path) -> int | None:
    """Number of rows of a file, for showing progress; of a text file its lines. None if it is not cheap to know."""
    if path.suffix.lower() == ".parquet":
        with arrow_batches(path):  # says what is wrong with a file that is no such file
            return parquet.read_metadata(path).num_rows
    if path.suffix.lower() == ".arrow" or path.name.lower().removesuffix(".gz").endswith(".json"):
        return None
    try:
        with open_bytes(path) as file:
            lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except (OSError, EOFError, zlib.error):
        return None  # reading the rows says what is wrong
    return max(1, lines - path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv")))


def _is_table(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".") and name not in SAVED


def input_files(place: Path) -> list[Path]:
    """The file itself, or the files of a folder in the order of their names.

    Raises:
        ConfigError: it does not exist, or is no table.
    """
    if place.is_dir():
        found = sorted(path for path in place.iterdir() if path.is_file() and _is_table(path.name))
        if not found:
            raise ConfigError(f"--input: {place}: has no file that ends with one of {', '.join(SUFFIXES)}")
        return found
    if not place.is_file():
        raise ConfigError(f"--input: {place}: no such file or folder")
    if not place.name.lower().endswith(SUFFIXES):
        raise ConfigError(f"--input: {place}: unknown file type; use one of {', '.join(SUFFIXES)}")
    return [place]
