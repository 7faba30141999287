"""Read rows, each with its place, from JSON lines, JSON, CSV, TSV, Parquet and Arrow files."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from pyarrow import ArrowException, ArrowInvalid, ipc, parquet

from dynamo_mtl.data.delimited import delimited_rows
from dynamo_mtl.data.text_files import Reading, encodes, not_encoded, open_text
from dynamo_mtl.errors import DataError

Refuse = Callable[[DataError], None]
Rows = Iterator[tuple[Mapping[str, Any], str]]
PLAIN = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*PLAIN, *(f"{suffix}.gz" for suffix in PLAIN), ".parquet", ".arrow")
SAVED = ("state.json", "dataset_info.json")
"""Files of a folder that ``Dataset.save_to_disk`` wrote."""
LISTS = ("data", "rows", "examples", "instances")
"""Keys under which a JSON file may hold its list of rows."""


def file_rows(path: Path, reading: Reading, refuse: Refuse) -> Rows:
    """Rows of a file, or of a folder that ``Dataset.save_to_disk`` wrote.

    Numbers that have names in the file's schema (``ClassLabel``) are replaced by these names.

    Args:
        path: of any of ``SUFFIXES``.
        reading: how a text file is written.
        refuse: is called with each row that cannot be parsed.

    Raises:
        DataError: a file that cannot be read at all.
    """
    name = path.name.lower().removesuffix(".gz")
    try:
        if path.is_dir():
            yield from _saved_rows(path)
        elif name.endswith((".jsonl", ".ndjson")):
            yield from _json_lines(path, reading, refuse)
        elif name.endswith(".json"):
            yield from _json_rows(path, reading, refuse)
        elif name.endswith((".csv", ".tsv")):
            yield from delimited_rows(path, reading, refuse)
        elif name.endswith((".parquet", ".arrow")):
            yield from _arrow_rows(path)
        else:
            raise DataError(f"{path}: unknown file type; use one of {', '.join(SUFFIXES)}")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _json_lines(path: Path, reading: Reading, refuse: Refuse) -> Rows:
    # Bytes that are no text spoil their line alone. They are told by the surrogates that stand for them.
    with open_text(path, reading, "surrogateescape") as text:
        for number, line in enumerate(text.file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            if not encodes(line):
                refuse(not_encoded(where, text.file.encoding, "invalid bytes", reading))
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                refuse(DataError(f"{where}: not valid JSON ({error})", "not valid JSON"))
                continue
            if not isinstance(row, dict):
                refuse(DataError(f"{where}: expected a JSON object, found {type(row).__name__}", "not a JSON object"))
                continue
            yield row, where


def _json_rows(path: Path, reading: Reading, refuse: Refuse) -> Rows:
    """Yield the rows of a JSON list, of a list under a key, of SQuAD's format, or of JSON lines named ``.json``."""
    try:
        with open_text(path, reading) as text:
            content = json.loads(text.file.read())
    except (ValueError, RecursionError) as error:
        if "Extra data" in str(error):
            yield from _json_lines(path, reading, refuse)
            return
        raise DataError(f"{path}: not valid JSON ({error})") from error
    if isinstance(content, dict):
        listed = next((content[key] for key in LISTS if isinstance(content.get(key), list)), None)
        if listed is None:
            known = ", ".join(LISTS)
            raise DataError(f"{path}: expected a list of objects, or one under a key such as {known}")
        if any(isinstance(one, dict) and "paragraphs" in one for one in listed):
            yield from _squad_rows(path, listed)
            return
        content = listed
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of objects, found {type(content).__name__}")
    for number, row in enumerate(content, start=1):
        where = f"{path}, item {number}"
        if isinstance(row, dict):
            yield row, where
        else:
            refuse(DataError(f"{where}: expected a JSON object, found {type(row).__name__}", "not a JSON object"))


def _squad_rows(path: Path, articles: list[Any]) -> Rows:
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield {**question, "context": paragraph["context"]}, f"{path}, question {question['id']}"
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: neither a list of objects nor the SQuAD format (missing {error})") from error


class ArrowRow(Mapping[str, Any]):
    """A row of an Arrow table. Cells are read on access, so an unreadable cell that nobody uses does no harm."""

    def __init__(self, columns: Mapping[str, Any], number: int, names: Mapping[str, Callable[[Any], Any]]) -> None:
        self._columns, self._number, self._names = columns, number, names

    def __getitem__(self, name: str) -> Any:
        try:
            value = self._columns[name][self._number].as_py()
        except (ArrowException, ValueError, OverflowError) as error:
            raise DataError(
                f"column '{name}' holds a value that cannot be read ({error})", "unreadable cell"
            ) from error
        return self._names[name](value) if name in self._names else value

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


@contextmanager
def arrow_batches(path: Path) -> Iterator[tuple[pyarrow.Schema, Iterator[pyarrow.RecordBatch]]]:
    """The schema and the rows of a Parquet or Arrow file, read as a stream.

    Raises:
        DataError: it is no such file.
    """
    kind = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
    try:
        if kind == "Parquet":
            file = parquet.ParquetFile(path)
            yield file.schema_arrow, file.iter_batches(batch_size=1000)
            return
        try:
            stream = ipc.open_stream(path)
        except ArrowInvalid:
            reader = ipc.open_file(path)
            yield reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            yield stream.schema, iter(stream)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ArrowInvalid as error:
        raise DataError(f"{path}: not a {kind} file ({str(error).partition(chr(10))[0]})") from error


def _arrow_rows(path: Path) -> Rows:
    with arrow_batches(path) as (schema, batches):
        names = schema_names(datasets.Features.from_arrow_schema(schema) if schema.metadata else None)
        number = 0
        for batch in batches:
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            for place in range(batch.num_rows):
                number += 1
                yield ArrowRow(columns, place, names), f"{path}, row {number}"


def _saved_rows(folder: Path) -> Rows:
    try:
        table = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: cannot be read as a saved data set ({str(error).partition(chr(10))[0]})") from error
    assert isinstance(table, datasets.Dataset)
    names = schema_names(table.features)
    for number, row in enumerate(table, start=1):
        assert isinstance(row, Mapping)
        yield named(row, names), f"{folder}, row {number}"


def schema_names(features: Mapping[str, Any] | None) -> dict[str, Callable[[Any], Any]]:
    """For each column whose numbers, alone or in lists, have names in the schema: a function that inserts them."""
    found: dict[str, Callable[[Any], Any]] = {}
    for column, feature in (features or {}).items():
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, datasets.ClassLabel) and inner.names:
            one = _namer(list(inner.names))
            found[column] = one if inner is feature else _each(one)
    return found


def _namer(names: list[str]) -> Callable[[Any], Any]:
    def name(value: Any) -> Any:
        if type(value) is int:
            return names[value] if 0 <= value < len(names) else None  # -1 stands for no label
        return value

    return name


def _each(name: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda values: [name(value) for value in values] if isinstance(values, list) else values


def named(row: Mapping[str, Any], names: Mapping[str, Callable[[Any], Any]]) -> Mapping[str, Any]:
    """A row with names in place of numbers."""
    return {**row, **{column: name(row[column]) for column, name in names.items() if column in row}} if names else row
