"""Write answered rows as JSON lines, CSV, TSV or Parquet: in parts, which are joined to a file in the end."""

from __future__ import annotations

import abc
import csv
import gzip
import io
import json
import math
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

    def begin(self, rows: Sequence[Row], schema: pyarrow.Schema | None, names: Sequence[str]) -> None:
        """Settle the columns.

        Args:
            rows: the first rows of the input.
            schema: of its file, if it has one.
            names: its columns.
        """
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
        plain = csv.writer(text, delimiter=self.separator, lineterminator="\n")
        quoted = csv.writer(text, delimiter=self.separator, lineterminator="\n", quoting=csv.QUOTE_ALL)
        for row in rows:  # the writer leaves a lone carriage return as it is, which readers take for the end of a row
            (quoted if any("\r" in cell for cell in row) else plain).writerow(row)
        return clean(text.getvalue()).encode()


class Parquet(OutputFormat):
    """Parquet. Columns of the input keep the types of its schema; without one, those of the first rows."""

    def begin(self, rows: Sequence[Row], schema: pyarrow.Schema | None, names: Sequence[str]) -> None:
        """Settle the columns and their types. Without a schema, lists and mappings are written as JSON."""
        super().begin(rows, schema, names)
        fields = (
            list(schema) if schema is not None else [_field(name, [row.get(name) for row in rows]) for name in names]
        )
        self._as_json = set() if schema is not None else {one.name for one in fields if one.type == pyarrow.string()}
        self._old = pyarrow.schema(fields)
        new = [pyarrow.field(name, TYPES[kind]) for name, kind in self.types.items()]
        self.schema = pyarrow.schema([*fields, *new], metadata=None if schema is None else schema.metadata)

    def part(self, rows: Sequence[Row]) -> bytes:
        """Some rows, as a small Parquet file."""
        self._check(rows, ".parquet")
        sink = io.BytesIO()
        try:
            columns = pyarrow.Table.from_pylist([self._kept(row) for row in rows], schema=self._old).columns
            new = cell_arrays(rows, self.types).values()
            parquet.write_table(pyarrow.Table.from_arrays([*columns, *new], schema=self.schema), sink)
        except (pyarrow.ArrowException, OverflowError, ValueError) as error:
            raise _mixed(error) from error
        return sink.getvalue()

    def _kept(self, row: Row) -> dict[str, Any]:
        """The old cells of a row, as the file can hold them."""
        return {
            name: clean(_written(value)) if isinstance(value, str | list | dict) and name in self._as_json else value
            for name in self._old.names
            for value in [row.get(name)]
        }

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
            values = [None if value is None else clean(_written(value)) for value in values]
        found[name] = pyarrow.array(values, TYPES[kind])
    return found


def _field(name: str, values: Sequence[Any]) -> pyarrow.Field:
    """The type of a column by its first values: that of numbers and truth values, else text."""
    kinds = {type(value) for value in values if value is not None}
    known = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64()}
    if kinds == {int, float}:
        return pyarrow.field(name, pyarrow.float64())
    return pyarrow.field(name, known.get(next(iter(kinds)), pyarrow.string()) if len(kinds) == 1 else pyarrow.string())


def _mixed(error: Exception) -> DataError:
    said = str(error).partition("\n")[0]
    return DataError(f"the values of a column are of several types ({said:.150}); write .jsonl in place of .parquet")


def _json(value: Any) -> str:
    try:
        written = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:  # NaN and infinity are no JSON
        written = json.dumps(_finite(value), ensure_ascii=False, default=str)
    if written.isascii() or clean(written) == written:
        return written
    return json.dumps(_finite(value), default=str)  # half of a surrogate pair, which only an escape can write


def _finite(value: Any) -> Any:
    """A value with null in place of numbers that JSON cannot write."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(own) for key, own in value.items()}
    return [_finite(own) for own in value] if isinstance(value, list | tuple) else value


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


def write_joined(form: OutputFormat, parts: Iterable[Path], place: Path, name: str) -> None:
    """Write a file from its parts. The same parts give the same bytes.

    Args:
        form: how it is written.
        parts: in order.
        place: where it is written.
        name: its name in the end; if it ends with ``.gz``, the file is packed.
    """
    with place.open("wb") as file:
        if name.lower().endswith(".gz"):
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                form.join(parts, packed)  # pyright: ignore[reportArgumentType] (a binary file to everyone but typing)
        else:
            form.join(parts, file)
