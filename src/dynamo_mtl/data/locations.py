"""Find the files of a split from the path of a file or folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from dynamo_mtl.data.files import SAVED, SUFFIXES
from dynamo_mtl.data.samples import SAMPLE
from dynamo_mtl.errors import DataError

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "train-v1.1", "train-v2.0"),
    "validation": ("validation", "valid", "val", "dev", "dev-v1.1", "dev-v2.0"),
    "test": ("test",),
}
LINES = (".txt", ".txt.gz")
"""Endings of files with a text on each line."""
SHARD = r"-\d+(-of-\d+)?"
"""What follows the name of a split that has several files."""


def find_files(location: str, split: str) -> list[Path] | None:
    """The files of a split in a folder, or the named file itself; None for a hub id.

    Names are compared without case. A split may have several files, such as ``train-00000-of-00002.parquet``. A folder
    may be one that ``Dataset.save_to_disk`` wrote, or contain such folders.

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


def set_name(location: str) -> str:
    """A short name for a file or folder of texts: its own, or its folder's if it is called after a split."""
    path = Path(location)
    name = path.name
    for suffix in (*LINES, *SUFFIXES[::-1]):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    splits = {known for names in SPLIT_NAMES.values() for known in names}
    if name.lower() in splits and path.parent.name:
        name = path.parent.name
    return re.sub(r"[^\w.-]+", "_", name)
