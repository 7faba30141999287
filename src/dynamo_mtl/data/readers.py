"""Read the rows of a split from files or from the hub, each with its place for messages."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import datasets
from datasets.config import HF_DATASETS_CACHE
from huggingface_hub import HfApi

from dynamo_mtl.data.data_config import DataConfig
from dynamo_mtl.data.files import file_rows, named, schema_names
from dynamo_mtl.data.locations import find_files, is_sample
from dynamo_mtl.data.samples import SAMPLE, sample_rows
from dynamo_mtl.data.text_files import Reading
from dynamo_mtl.errors import DataError
from dynamo_mtl.storage import at_home

logger = logging.getLogger(__name__)
DEFAULT_READING = Reading()


def hub_commit(location: str, config: DataConfig) -> str | None:
    """Return the current commit of a hub data set's revision; if offline, the last one seen, if any."""
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
"""Timeout of a request to the hub for a commit."""


def raise_it(error: DataError) -> None:
    """Refuse a row by raising its error, which stops reading."""
    raise error


def read_rows(
    location: str,
    split: str,
    config: DataConfig,
    refuse: Callable[[DataError], None] = raise_it,
    reading: Reading = DEFAULT_READING,
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Raw rows of a split, each with its place ("file, line 3").

    Args:
        location: file, folder, hub id or ``sample:<task type>``.
        split: ``train``, ``validation`` or ``test``.
        config: hub revision.
        refuse: called with the error of each row that cannot be parsed. It raises by default; if it returns, reading
            goes on with the next row.
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
"""Branch where the hub keeps the rows of a data set as Parquet."""


def _hub_rows(location: str, split: str, config: DataConfig) -> Iterator[tuple[Mapping[str, Any], str]]:
    name, _, configuration = location.partition(":")

    def stream(revision: str | None) -> Any:
        return datasets.load_dataset(name, configuration or None, split=split, revision=revision, streaming=True)

    try:
        try:
            rows = stream(hub_commit(location, config) or config.revision)
        except RuntimeError as error:
            # The data set is a script, which is never run. The hub has converted most of these to Parquet.
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
