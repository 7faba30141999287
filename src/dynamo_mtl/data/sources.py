"""Prepare tables of examples from files, folders, the hub or the built-in corpus. Independent of task types.

Rows are read as a stream, turned into validated examples by a task's reader, and stored once as memory-mapped Arrow.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
from datasets.config import HF_DATASETS_CACHE
from datasets.exceptions import DatasetGenerationError

from dynamo_mtl.data.data_config import DataConfig
from dynamo_mtl.data.locations import find_files, is_sample
from dynamo_mtl.data.readers import DEFAULT_READING, hub_commit, read_rows
from dynamo_mtl.data.samples import SAMPLE, sample_revision
from dynamo_mtl.data.text_files import Reading
from dynamo_mtl.errors import DataError
from dynamo_mtl.storage import at_home, writable_folder

logger = logging.getLogger(__name__)


class RowLike(Protocol):
    """What a reader returns: text, optional context, target."""

    @property
    def text(self) -> str:
        """The text to work on."""
        ...

    @property
    def context(self) -> str | None:
        """A passage that the text is about, if any."""
        ...

    @property
    def target(self) -> str:
        """The expected answer, as text."""
        ...

    @property
    def choices(self) -> list[str] | None:
        """The options to choose from, if the input has any."""
        ...


COLUMNS = ("text", "context", "target", "choices")
"""Of a prepared table, in the order of the fields of an example."""


def open_table(
    location: str,
    split: str,
    reader: Callable[[Mapping[str, Any], str], RowLike],
    key: str,
    config: DataConfig,
    reading: Reading = DEFAULT_READING,
) -> datasets.Dataset:
    """Validated examples of a split as a memory-mapped table with the columns ``COLUMNS``.

    Args:
        location: file, folder, hub id or ``sample:<task type>``.
        split: ``train``, ``validation`` or ``test``.
        reader: turns a row and its place ("file, line 3") into an example, or raises ``DataError``.
        key: what the reader depends on (its settings), part of the cache key.
        config: cache folder, hub revision, and what to do with rows that cannot be used.
        reading: how text files are written.

    Raises:
        DataError: the location does not exist, a row cannot be read, or the split is empty.
    """
    files = None if is_sample(location) else find_files(location, split)
    cache = at_home(config.cache_dir or HF_DATASETS_CACHE)
    writable_folder(cache, "data.cache_dir")
    commit = hub_commit(location, config) if files is None and not is_sample(location) else None
    fingerprint = _fingerprint(location, split, key, files, config, commit)
    skipped: dict[str, int] = {}

    def skip(error: DataError) -> None:
        if config.bad_rows == "refuse":
            raise error
        skipped[error.kind] = skipped.get(error.kind, 0) + 1

    def examples() -> Iterator[dict[str, Any]]:
        skipped.clear()
        for row, where in read_rows(location, split, config, skip, reading):
            try:
                example = reader(row, where)
            except DataError as error:
                skip(error)
                continue
            yield {name: getattr(example, name) for name in COLUMNS}

    text = datasets.Value("string")
    features = datasets.Features({name: datasets.List(text) if name == "choices" else text for name in COLUMNS})
    note = cache / "dynamo_skipped" / f"{fingerprint}.json"
    datasets.disable_progress_bars()
    try:
        table = datasets.Dataset.from_generator(
            examples, features=features, cache_dir=str(cache), fingerprint=fingerprint
        )
    except DatasetGenerationError as error:
        raise _cause(error) from None
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        left = f", {sum(skipped.values())} were left out" if skipped else ""
        raise DataError(f"{location}: the split '{split}' is empty{left}; it needs at least one row") from error
    finally:
        datasets.enable_progress_bars()
    assert isinstance(table, datasets.Dataset)
    if skipped:
        note.parent.mkdir(exist_ok=True)
        note.write_text(json.dumps(skipped), encoding="utf-8")
    _say_skipped(location, split, note)
    return table


def _cause(error: BaseException) -> BaseException:
    """Return the ``DataError`` that caused an error of the library; the error itself if there is none."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DataError):
        cause = cause.__cause__
    return cause or error


def _say_skipped(location: str, split: str, note: Path) -> None:
    """Warn how many rows were skipped when the table was prepared, and why."""
    if note.is_file():
        kinds: dict[str, int] = json.loads(note.read_text(encoding="utf-8"))
        reasons = ", ".join(f"{count} with {kind}" for kind, count in kinds.items())
        logger.warning("%s, %s: %d rows are left out: %s", location, split, sum(kinds.values()), reasons)


def sample_of(table: datasets.Dataset, count: int | None, seed: int) -> datasets.Dataset:
    """Return ``count`` random rows in their order, chosen by the seed; all rows if None or too few."""
    if count is None or count >= len(table):
        return table
    chosen = np.sort(np.random.default_rng([seed, len(table)]).permutation(len(table))[:count])
    return table.select(chosen)


def _fingerprint(
    location: str, split: str, key: str, files: Sequence[Path] | None, config: DataConfig, commit: str | None
) -> str:
    paths = [f for path in files or () for f in (sorted(path.iterdir()) if path.is_dir() else [path])]
    stamps = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    sample = sample_revision(location.removeprefix(f"{SAMPLE}:")) if is_sample(location) else None
    parts = (location, split, key, stamps, sample, config.revision, commit, config.bad_rows, FORMAT)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


FORMAT = 5
"""Part of the cache key: raised when the meaning of prepared tables changes."""
