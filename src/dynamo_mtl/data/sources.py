"""Where rows come from: files, folders, the hub or the built-in sample corpus. Knows no task.

Rows are read as a stream, turned into validated examples by a task's reader, and stored once as memory-mapped Arrow.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
from datasets.config import HF_DATASETS_CACHE
from datasets.exceptions import DatasetGenerationError
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dynamo_mtl.data.samples import SAMPLE, sample_revision, sample_rows
from dynamo_mtl.errors import DataError, writable_folder
from dynamo_mtl.storage import at_home

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "train-v1.1"),
    "validation": ("validation", "valid", "val", "dev", "dev-v1.1"),
    "test": ("test",),
}
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet")
DATA_PATH = "_data_path"


class DataConfig(BaseModel):
    """Where the data lies and how sources are cut and mixed.

    ``<task>_data_path`` is a folder with ``train`` and ``validation`` files, a single file, a hub id (``owner/name``,
    or ``owner/name:configuration`` where a data set has several), or ``sample``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    root: str | None = None
    """Put in front of relative data paths."""
    paths: dict[str, str] = Field(default_factory=dict)
    """Task → data path, collected from the ``<task>_data_path`` keys."""
    cache_dir: str | None = None
    """Where prepared data is kept; the cache folder of ``datasets`` if not given."""
    revision: str | None = None
    """Branch, tag or commit of hub data sets."""
    max_source_length: int = Field(default=256, ge=16)
    """Tokens in a window of a source."""
    window_overlap: int = Field(default=64, ge=0)
    """Tokens that two neighbouring windows of a long source share."""
    max_windows: int = Field(default=4, ge=1)
    """Windows of one source; what does not fit into them is not read."""
    instruction_rate: float = Field(default=0.3, ge=0, le=1)
    """Share of training examples that get an instruction."""
    crossed_rate: float = Field(default=1.0, ge=0, le=1)
    """Share of the router's training examples that it also sees with the instruction of another task."""
    sampling_exponent: float = Field(default=0.5, ge=0, le=1)
    """Mixtures draw a task with a probability proportional to its size to this power."""
    num_workers: int = Field(default=0, ge=0)
    """Processes that prepare batches ahead, for a GPU that would wait for them."""

    @model_validator(mode="before")
    @classmethod
    def _collect_paths(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not isinstance(raw.get("paths", {}), dict):
            return raw
        named = {k.removesuffix(DATA_PATH): v for k, v in raw.items() if k.endswith(DATA_PATH)}
        rest = {k: v for k, v in raw.items() if not k.endswith(DATA_PATH)}
        return {**rest, "paths": {**rest.get("paths", {}), **named}} if named else rest


class RowLike(Protocol):
    """What a reader returns: text, optional context, target."""

    @property
    def text(self) -> str:
        """What is worked on."""
        ...

    @property
    def context(self) -> str | None:
        """A passage beside it."""
        ...

    @property
    def target(self) -> str:
        """What is expected, as text."""
        ...


COLUMNS = ("text", "context", "target", "tests")
"""Of a prepared table, in the order of the fields of an example."""


def open_table(
    location: str, split: str, reader: Callable[[Mapping[str, Any], str], RowLike], key: str, config: DataConfig
) -> datasets.Dataset:
    """Validated examples of a split as a memory-mapped table with the columns ``COLUMNS``.

    Args:
        location: file, folder, hub id or ``sample:<task type>``.
        split: ``train``, ``validation`` or ``test``.
        reader: turns a row and its place ("file, line 3") into an example, or raises ``DataError``.
        key: what the reader depends on (its settings), part of the cache key.
        config: cache folder and hub revision.

    Raises:
        DataError: nothing there, an unreadable row, or an empty split.
    """
    file = None if is_sample(location) else find_file(location, split)
    fingerprint = _fingerprint(location, split, key, file, config)

    def examples() -> Iterator[dict[str, str | None]]:
        for row, where in read_rows(location, split, config):
            example = reader(row, where)
            yield {name: getattr(example, name) for name in COLUMNS}

    features = datasets.Features({name: datasets.Value("string") for name in COLUMNS})
    cache = str(at_home(config.cache_dir or HF_DATASETS_CACHE))
    writable_folder(Path(cache), "data.cache_dir")
    datasets.disable_progress_bars()
    try:
        table = datasets.Dataset.from_generator(examples, features=features, cache_dir=cache, fingerprint=fingerprint)
    except DatasetGenerationError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, DataError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        raise DataError(f"{file or location}: the split '{split}' is empty; it needs at least one row") from error
    finally:
        datasets.enable_progress_bars()
    assert isinstance(table, datasets.Dataset)
    return table


def sample_of(table: datasets.Dataset, count: int | None, seed: int) -> datasets.Dataset:
    """A random sample of ``count`` rows in their order, the same for the same seed; all rows if None or too few."""
    if count is None or count >= len(table):
        return table
    chosen = np.sort(np.random.default_rng([seed, len(table)]).permutation(len(table))[:count])
    return table.select(chosen)


def find_file(location: str, split: str) -> Path | None:
    """The file of a split in a folder, or the named file itself; None for a hub id.

    Raises:
        DataError: a path that does not exist, or a folder without such a split.
    """
    path = Path(location)
    if path.is_file():
        return path
    if not path.is_dir():
        # "owner/name" may be a hub id; anything that looks like a path is one.
        if location.count("/") > 1 or location.startswith((".", "/", "~")) or location.endswith(SUFFIXES):
            raise DataError(f"{location}: no such file or folder")
        return None
    for name in SPLIT_NAMES.get(split, (split,)):
        for suffix in SUFFIXES:
            if (path / f"{name}{suffix}").is_file():
                return path / f"{name}{suffix}"
    expected = ", ".join(f"{name}.jsonl" for name in SPLIT_NAMES.get(split, (split,))[:2])
    raise DataError(
        f"{location}: no file for the split '{split}'; expected {expected} or another of {', '.join(SUFFIXES)}"
    )


def is_sample(location: str) -> bool:
    """Whether a location is the built-in corpus, ``sample`` or ``sample:<task type>``."""
    return location == SAMPLE or location.startswith(f"{SAMPLE}:")


def _fingerprint(location: str, split: str, key: str, file: Path | None, config: DataConfig) -> str:
    stamp = (str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) if file else None
    sample = sample_revision(location.removeprefix(f"{SAMPLE}:")) if is_sample(location) else None
    parts = (location, split, key, stamp, sample, config.revision, FORMAT)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


FORMAT = 2
"""Part of the cache key: raised when the meaning of prepared tables changes."""


def _stop(error: DataError) -> None:
    raise error


def read_rows(
    location: str, split: str, config: DataConfig, refuse: Callable[[DataError], None] = _stop
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Raw rows of a split, each with its place ("file, line 3").

    Args:
        location: file, folder, hub id or ``sample:<task type>``.
        split: ``train``, ``validation`` or ``test``.
        config: hub revision.
        refuse: is told of each row that cannot be parsed; raises by default, else the next row follows.
    """
    file = None if is_sample(location) else find_file(location, split)
    if is_sample(location):
        for number, row in enumerate(sample_rows(location.removeprefix(f"{SAMPLE}:"), split)):
            yield row, f"{location}, row {number + 1}"
    elif file is None:
        yield from _hub_rows(location, split, config.revision)
    else:
        yield from _file_rows(file, refuse)


CONVERTED = "refs/convert/parquet"
"""The branch of a data set on the hub where the hub itself keeps its rows as Parquet."""


def _hub_rows(location: str, split: str, revision: str | None) -> Iterator[tuple[Mapping[str, Any], str]]:
    name, _, configuration = location.partition(":")

    def stream(revision: str | None) -> Any:
        return datasets.load_dataset(name, configuration or None, split=split, revision=revision, streaming=True)

    try:
        try:
            rows = stream(revision)
        except RuntimeError as error:
            # A data set that is a program: it is never run, but the hub has converted most of them.
            if "scripts are no longer supported" not in str(error) or revision is not None:
                raise
            rows = stream(CONVERTED)
        for number, row in enumerate(rows):
            assert isinstance(row, Mapping)
            yield row, f"{location}, split {split}, row {number + 1}"
    except Exception as error:  # the hub's libraries raise many kinds
        reason = str(error).split("\n", maxsplit=1)[0]
        raise DataError(
            f"{location}: neither a local path nor a data set that could be read from the hub "
            f"({type(error).__name__}: {reason})"
        ) from error


def _file_rows(path: Path, refuse: Callable[[DataError], None]) -> Iterator[tuple[Mapping[str, Any], str]]:
    name = path.name.lower()
    try:
        if name.endswith((".jsonl", ".jsonl.gz")):
            yield from _json_lines(path, refuse)
        elif name.endswith(".json"):
            yield from _squad_rows(path)
        elif name.endswith((".csv", ".tsv")):
            yield from _delimited_rows(path, refuse)
        elif name.endswith(".parquet"):
            yield from _parquet_rows(path)
        else:
            raise DataError(f"{path}: unknown file type; use one of {', '.join(SUFFIXES)}")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _json_lines(path: Path, refuse: Callable[[DataError], None]) -> Iterator[tuple[Mapping[str, Any], str]]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                refuse(DataError(f"{where}: not valid JSON ({error})", "not valid JSON"))
                continue
            if not isinstance(row, dict):
                refuse(DataError(f"{where}: expected a JSON object, found {type(row).__name__}", "not a JSON object"))
                continue
            yield row, where


def _squad_rows(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Rows of the official SQuAD JSON, or of a plain JSON list of objects."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    if isinstance(content, list):
        for number, row in enumerate(content, start=1):
            if not isinstance(row, dict):
                raise DataError(f"{path}, item {number}: expected a JSON object, found {type(row).__name__}")
            yield row, f"{path}, item {number}"
        return
    try:
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    if question.get("is_impossible"):
                        continue
                    yield {**question, "context": paragraph["context"]}, f"{path}, question {question['id']}"
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: neither a list of objects nor the SQuAD format (missing {error})") from error


def _delimited_rows(path: Path, refuse: Callable[[DataError], None]) -> Iterator[tuple[Mapping[str, Any], str]]:
    tab = path.suffix.lower() == ".tsv"
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        # GLUE's TSV files hold bare quotation marks.
        quoting = csv.QUOTE_NONE if tab else csv.QUOTE_MINIMAL
        lines = csv.DictReader(file, delimiter="\t" if tab else ",", quoting=quoting)
        for row in lines:
            where = f"{path}, line {lines.line_num}"
            if None in row or None in row.values():
                columns = len(lines.fieldnames or [])
                refuse(DataError(f"{where}: expected {columns} columns as in the header", "another number of columns"))
                continue
            yield row, where


def _parquet_rows(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    from pyarrow import ArrowInvalid, parquet

    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield row, f"{path}, row {number}"
    except ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({str(error).partition(chr(10))[0]})") from error
