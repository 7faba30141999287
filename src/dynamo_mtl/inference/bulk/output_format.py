"""Write answered rows as JSON lines, CSV, TSV or Parquet: in parts, which are joined to a file in the end."""

from __future__ import annotations

import abc
import csv
import gzip
import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
from pyarrow import parquet

from dynamo_mtl.errors import ConfigError, DataError
from dynamo_mtl.tasks.encoding import clean

TYPES: Mapping[type, pyarrow.DataType] = {
    str: pyarrow.string(), float: pyarrow.float64(), int: pyarrow.int64(), bool: pyarrow.bool_(),
    object: pyarrow.string(),
}  # fmt: skip
"""Type of a new column → type of a column of Parquet; lists and mappings are written as JSON."""
ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv", ".jsonl.gz", ".ndjson.gz", ".csv.gz", ".tsv.gz", ".parquet")
Row = Mapping[str, Any]


class OutputFormat(abc.ABC):
    """How rows are written. A part is written on its own, so that an interrupted run keeps what it has."""

    def __init__(self, types: Mapping[str, type]) -> None:
        """
        Args:
            types: name of each new column → type of its values.
        """
        self.types = types
        self.columns: Sequence[str] = ()
        """All columns, those of the input first."""

    def begin(self, rows: Sequence[Row], schema: pyarrow.Schema | None) -> None:
        """Settle the columns, from the first input rows and the schema that their file has, if it has one."""
        names = schema.names if schema is not None else list(dict.fromkeys(name for row in rows for name in row))
        self.columns = [*names, *self.types]

    @abc.abstractmethod
    def part(self, rows: Sequence[Row]) -> bytes:
        """Some rows, as they are stored.

        Raises:
            DataError: a row does not fit the columns.
        """

    @abc.abstractmethod
    def join(self, parts: Iterable[Path], file: BinaryIO) -> None:
        """Write the whole file."""

    def _check(self, rows: Sequence[Row], ending: str) -> None:
        known = set(self.columns)
        for row in rows:
            if more := row.keys() - known:
                raise DataError(
                    f"a later row has the column '{sorted(map(str, more))[0]}', which the first rows lack; a file of "
                    f"type {ending} has the same columns in all rows, so write .jsonl"
                )


class JsonLines(OutputFormat):
    """JSON lines. Every row keeps the keys that it has."""

    def part(self, rows: Sequence[Row]) -> bytes:
        """Some rows, one on a line."""
        return "".join(f"{_json(row)}\n" for row in rows).encode()

    def join(self, parts: Iterable[Path], file: BinaryIO) -> None:
        """The parts, one after the other."""
        for part in parts:
            with part.open("rb") as stored:
                shutil.copyfileobj(stored, file, 1 << 20)


class Delimited(JsonLines):
    """CSV or TSV, with the names of the columns on the first line."""

    def __init__(self, types: Mapping[str, type], separator: str) -> None:
        super().__init__(types)
        self.separator = separator

    def part(self, rows: Sequence[Row]) -> bytes:
        """Some rows, without the line of names."""
        self._check(rows, ".tsv" if self.separator == "\t" else ".csv")
        return self._lines([_written(row.get(name)) for name in self.columns] for row in rows)

    def join(self, parts: Iterable[Path], file: BinaryIO) -> None:
        """The names, then the parts."""
        file.write(self._lines([self.columns]))
        super().join(parts, file)

    def _lines(self, rows: Iterable[Sequence[str]]) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=self.separator, lineterminator="\n").writerows(rows)
        return clean(text.getvalue()).encode()


class Parquet(OutputFormat):
    """Parquet. Columns of the input keep the types of its schema; without one, those of the first rows."""

    def begin(self, rows: Sequence[Row], schema: pyarrow.Schema | None) -> None:
        """Settle the columns and their types."""
        super().begin(rows, schema)
        known = schema
        if known is None:
            names = self.columns[: len(self.columns) - len(self.types)]
            try:
                columns = {name: pyarrow.array([row.get(name) for row in rows]) for name in names}
            except pyarrow.ArrowException as error:
                raise _mixed(error) from error
            # A column that is empty so far may hold anything later, which is most often text.
            kinds = {n: pyarrow.string() if a.type == pyarrow.null() else a.type for n, a in columns.items()}
            known = pyarrow.schema(list(kinds.items()))
        new = [pyarrow.field(name, TYPES[kind]) for name, kind in self.types.items()]
        self.schema = pyarrow.schema([*known, *new], metadata=known.metadata)

    def part(self, rows: Sequence[Row]) -> bytes:
        """Some rows, as a small Parquet file."""
        self._check(rows, ".parquet")
        try:
            old = pyarrow.schema([field for field in self.schema if field.name not in self.types])
            columns = pyarrow.Table.from_pylist(list(rows), schema=old).columns
            new = cell_arrays(rows, self.types).values()
            table = pyarrow.Table.from_arrays([*columns, *new], schema=self.schema)
        except (pyarrow.ArrowException, OverflowError) as error:
            raise _mixed(error) from error
        sink = io.BytesIO()
        parquet.write_table(table, sink)
        return sink.getvalue()

    def join(self, parts: Iterable[Path], file: BinaryIO) -> None:
        """The rows of all parts, in groups as they were written."""
        with parquet.ParquetWriter(file, self.schema) as writer:
            for part in parts:
                writer.write_table(parquet.read_table(part, schema=self.schema))


def cell_arrays(cells: Sequence[Row], types: Mapping[str, type]) -> dict[str, pyarrow.Array]:
    """New columns as they stand in Parquet: lists and mappings are JSON.

    Args:
        cells: of each row.
        types: name of each new column → type of its values.
    """
    found: dict[str, pyarrow.Array] = {}
    for name, kind in types.items():
        values = [row.get(name) for row in cells]
        if kind in (str, object):
            values = [None if value is None else _written(value) for value in values]
        found[name] = pyarrow.array(values, TYPES[kind])
    return found


def _mixed(error: Exception) -> DataError:
    said = str(error).partition("\n")[0]
    return DataError(f"the values of a column are of several types ({said:.150}); write .jsonl in place of .parquet")


def _json(value: Any) -> str:
    written = json.dumps(value, ensure_ascii=False, default=str)
    if written.isascii() or clean(written) == written:
        return written
    return json.dumps(value, default=str)  # half of a surrogate pair, which only an escape can write


def _written(value: Any) -> str:
    """A cell as text: JSON for what is neither text nor a number."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return _json(value) if isinstance(value, list | dict | bool) else str(value)


def output_format(name: str, types: Mapping[str, type]) -> OutputFormat:
    """The format that the ending of a file's name says. Raises ``ConfigError`` if it says none."""
    plain = name.lower().removesuffix(".gz")
    if plain.endswith((".jsonl", ".ndjson")):
        return JsonLines(types)
    if plain.endswith((".csv", ".tsv")):
        return Delimited(types, "\t" if plain.endswith(".tsv") else ",")
    if name.lower().endswith(".parquet"):
        return Parquet(types)
    raise ConfigError(f"--output: {name}: unknown file type; use one of {', '.join(ENDINGS)}")


def write_joined(form: OutputFormat, parts: Iterable[Path], place: Path) -> None:
    """Write a file from its parts, packed if its name ends with ``.gz``. The same parts give the same bytes."""
    with place.open("wb") as file:
        if place.name.lower().removesuffix(".new").endswith(".gz"):
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                form.join(parts, packed)  # pyright: ignore[reportArgumentType] (a binary file to everyone but typing)
        else:
            form.join(parts, file)
