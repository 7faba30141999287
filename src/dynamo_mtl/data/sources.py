"""Where rows come from: files, folders, the hub or the built-in sample corpus. Knows no task.

Rows are read as a stream, turned into validated examples by a task's reader, and stored once as memory-mapped Arrow.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import datasets
import numpy as np
from datasets.config import HF_DATASETS_CACHE
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import HfApi
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dynamo_mtl.data.files import SAVED, SUFFIXES, file_rows, named, schema_names
from dynamo_mtl.data.samples import SAMPLE, sample_revision, sample_rows
from dynamo_mtl.data.text_files import Reading
from dynamo_mtl.errors import DataError, writable_folder
from dynamo_mtl.storage import at_home

logger = logging.getLogger(__name__)

DEFAULT_READING = Reading()
SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "train-v1.1"),
    "validation": ("validation", "valid", "val", "dev", "dev-v1.1"),
    "test": ("test",),
}
DATA_PATH = "_data_path"
SHARD = r"-\d+(-of-\d+)?"
"""What follows the name of a split where it lies in several files."""


class DataConfig(BaseModel):
    """Where the data lies and how sources are cut and mixed.

    ``<task>_data_path`` is a folder with ``train`` and ``validation`` files, perhaps in several shards, a single file,
    what ``save_to_disk`` wrote, a hub id (``owner/name``, or ``owner/name:configuration`` where a data set has
    several), or ``sample``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    root: str | None = None
    """Put in front of relative data paths."""
    paths: dict[str, str] = Field(default_factory=dict)
    """Task → data path, collected from the ``<task>_data_path`` keys."""
    cache_dir: str | None = None
    """Where prepared data is kept; the cache folder of ``datasets`` if not given."""
    revision: str | None = None
    """Branch, tag or commit of hub data sets; the newest commit if not given, which checkpoints name."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """What to do with rows that cannot be used: end with the first one, or leave them out and say how many and why."""
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
        DataError: nothing there, an unreadable row, or an empty split.
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

    def examples() -> Iterator[dict[str, str | None]]:
        skipped.clear()
        for row, where in read_rows(location, split, config, skip, reading):
            try:
                example = reader(row, where)
            except DataError as error:
                skip(error)
                continue
            yield {name: getattr(example, name) for name in COLUMNS}

    features = datasets.Features({name: datasets.Value("string") for name in COLUMNS})
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
    """What a generator raised, out of what the library made of it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DataError):
        cause = cause.__cause__
    return cause or error


def _say_skipped(location: str, split: str, note: Path) -> None:
    """Say how many rows a prepared table lacks, and why; known from when it was prepared."""
    if note.is_file():
        kinds: dict[str, int] = json.loads(note.read_text(encoding="utf-8"))
        reasons = ", ".join(f"{count} with {kind}" for kind, count in kinds.items())
        logger.warning("%s, %s: %d rows are left out: %s", location, split, sum(kinds.values()), reasons)


def sample_of(table: datasets.Dataset, count: int | None, seed: int) -> datasets.Dataset:
    """A random sample of ``count`` rows in their order, the same for the same seed; all rows if None or too few."""
    if count is None or count >= len(table):
        return table
    chosen = np.sort(np.random.default_rng([seed, len(table)]).permutation(len(table))[:count])
    return table.select(chosen)


def find_files(location: str, split: str) -> list[Path] | None:
    """The files of a split in a folder, or the named file itself; None for a hub id.

    Names are compared without case. A split may lie in several files, ``train-00000-of-00002.parquet`` and so on, and
    a folder may be what ``Dataset.save_to_disk`` wrote, or hold such folders.

    Raises:
        DataError: a path that does not exist, or a folder without such a split.
    """
    path = Path(location)
    if path.is_file() or is_saved(path):
        return [path]
    if not path.is_dir():
        # "owner/name" may be a hub id; anything that looks like a path is one.
        if location.count("/") > 1 or location.startswith((".", "/", "~")) or location.lower().endswith(SUFFIXES):
            raise DataError(f"{location}: no such file or folder")
        return None
    for name in SPLIT_NAMES.get(split, (split,)):
        found = [p for folder in (path, path / "data") for p in _named(folder, name)]
        if found:
            return found
    expected = ", ".join(f"{name}.jsonl" for name in SPLIT_NAMES.get(split, (split,))[:2])
    raise DataError(
        f"{location}: no file for the split '{split}'; expected {expected} or another of {', '.join(SUFFIXES)}"
    )


def _named(folder: Path, split: str) -> list[Path]:
    """A split's only file, or all its shards, or its saved folder."""
    if not folder.is_dir():
        return []
    stems = {
        path: next((path.name.lower().removesuffix(suffix) for suffix in SUFFIXES[::-1]
                    if path.name.lower().endswith(suffix)), path.name.lower() if is_saved(path) else "")
        for path in sorted(folder.iterdir())
    }  # fmt: skip
    whole = [path for path, stem in stems.items() if stem == split]
    return whole[:1] or [path for path, stem in stems.items() if re.fullmatch(re.escape(split) + SHARD, stem)]


def is_saved(folder: Path) -> bool:
    """Whether a folder is a single data set that ``Dataset.save_to_disk`` wrote."""
    return all((folder / name).is_file() for name in SAVED)


def is_sample(location: str) -> bool:
    """Whether a location is the built-in corpus, ``sample`` or ``sample:<task type>``."""
    return location == SAMPLE or location.startswith(f"{SAMPLE}:")


def _fingerprint(
    location: str, split: str, key: str, files: Sequence[Path] | None, config: DataConfig, commit: str | None
) -> str:
    paths = [f for path in files or () for f in (sorted(path.iterdir()) if path.is_dir() else [path])]
    stamps = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    sample = sample_revision(location.removeprefix(f"{SAMPLE}:")) if is_sample(location) else None
    parts = (location, split, key, stamps, sample, config.revision, commit, config.bad_rows, FORMAT)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def hub_commit(location: str, config: DataConfig) -> str | None:
    """The commit that a hub data set's revision stands for now; offline the one that was last seen, if any."""
    name, revision = location.partition(":")[0], config.revision
    cache = at_home(config.cache_dir or HF_DATASETS_CACHE)
    seen = cache / "dynamo_commits" / f"{hashlib.sha256(f'{name} {revision}'.encode()).hexdigest()[:32]}.txt"
    try:
        commit = HfApi().dataset_info(name, revision=revision, timeout=HUB_SECONDS).sha
    except Exception as error:  # the hub's libraries raise many kinds
        logger.debug("the commit of %s is not known: %s", name, error)
        return seen.read_text(encoding="utf-8") if seen.is_file() else None
    if commit:
        seen.parent.mkdir(parents=True, exist_ok=True)
        seen.write_text(commit, encoding="utf-8")
    return commit


HUB_SECONDS = 10.0
"""How long the hub is waited for when it is asked for a commit."""
FORMAT = 3
"""Part of the cache key: raised when the meaning of prepared tables changes."""


def _stop(error: DataError) -> None:
    raise error


def read_rows(
    location: str,
    split: str,
    config: DataConfig,
    refuse: Callable[[DataError], None] = _stop,
    reading: Reading = DEFAULT_READING,
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Raw rows of a split, each with its place ("file, line 3").

    Args:
        location: file, folder, hub id or ``sample:<task type>``.
        split: ``train``, ``validation`` or ``test``.
        config: hub revision.
        refuse: is told of each row that cannot be parsed; raises by default, else the next row follows.
        reading: how text files are written.
    """
    files = None if is_sample(location) else find_files(location, split)
    if is_sample(location):
        for number, row in enumerate(sample_rows(location.removeprefix(f"{SAMPLE}:"), split)):
            yield row, f"{location}, row {number + 1}"
    elif files is None:
        yield from _hub_rows(location, split, config)
    else:
        for file in files:
            yield from file_rows(file, reading, refuse)


CONVERTED = "refs/convert/parquet"
"""The branch of a data set on the hub where the hub itself keeps its rows as Parquet."""


def _hub_rows(location: str, split: str, config: DataConfig) -> Iterator[tuple[Mapping[str, Any], str]]:
    name, _, configuration = location.partition(":")

    def stream(revision: str | None) -> Any:
        return datasets.load_dataset(name, configuration or None, split=split, revision=revision, streaming=True)

    try:
        try:
            rows = stream(hub_commit(location, config) or config.revision)
        except RuntimeError as error:
            # A data set that is a program: it is never run, but the hub has converted most of them.
            if "scripts are no longer supported" not in str(error) or config.revision is not None:
                raise
            rows = stream(CONVERTED)
        names = schema_names(getattr(rows, "features", None))
        for number, row in enumerate(rows):
            assert isinstance(row, Mapping)
            yield named(row, names), f"{location}, split {split}, row {number + 1}"
    except Exception as error:  # the hub's libraries raise many kinds
        reason = str(error).split("\n", maxsplit=1)[0]
        raise DataError(
            f"{location}: neither a local path nor a data set that could be read from the hub "
            f"({type(error).__name__}: {reason})"
        ) from error
