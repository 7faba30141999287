"""Writes folders completely or not at all, and detects files that have changed since.

A folder is filled under a temporary name, the hash of every file is written to ``manifest.json``, and everything is
flushed to the disk. Only then is the folder renamed to its final name. A folder is removed by renaming it first. So a
folder under its final name is always complete, even after a killed process or a full disk, and later changes to it are
detected.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from dynamo_mtl.errors import CheckpointError, ConfigError

MANIFEST = "manifest.json"
UNHASHED = ("README.md",)
"""Files for people, which may be edited."""
_READ = re.compile(
    r"(adapters|heads|vocabularies)/.*|[^/]*\.(safetensors|bin)|config\.yaml|dynamo\.json|loop\.json|tokenizer[^/]*"
    r"|special_tokens_map\.json|added_tokens\.json|chat_template[^/]*|vocab\.[a-z]+|merges\.txt|sentencepiece[^/]*"
)
"""Names of files that a loader would read if they existed. All other files that are not in the manifest are ignored."""
_BLOCK = 1 << 20


def write_folder(place: Path, fill: Callable[[Path], None]) -> None:
    """Write a folder, replacing an older one at the same place only once the new one is complete.

    Args:
        place: final path.
        fill: writes the files into the folder that it is given.

    Raises:
        OSError: it cannot be written; what was at ``place`` before is as it was.
    """
    staging, old = _hidden(place, "new"), _hidden(place, "old")
    try:
        staging.mkdir(parents=True)
        fill(staging)
        write_manifest(staging)
        for path in (*_files(staging), *(p for p in staging.rglob("*") if p.is_dir()), staging):
            flush(path)
        if place.exists():
            os.replace(place, old)
        os.replace(staging, place)
        flush(place.parent)
    except BaseException:
        if old.exists() and not place.exists():
            os.replace(old, place)
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def at_home(path: str | Path) -> Path:
    """Expand a leading ``~`` of a path. The ``~`` of a user who does not exist is kept."""
    return Path(os.path.expanduser(path))


def writable_folder(folder: Path, key: str) -> None:
    """Create a folder and check that files can be written there, before any work whose result goes there.

    Raises:
        ConfigError: the folder cannot be created or written; the message names ``key``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{key}: {folder} cannot be written ({error.strerror})") from error


def new_folder(place: Path) -> Path:
    """Return the resolved path of a folder that can be written without replacing anything.

    Raises:
        CheckpointError: ``place`` exists and is not an empty folder, or it cannot be read.
        ConfigError: the parent folder cannot be written.
    """
    found = at_home(place).resolve()
    try:
        if found.exists() and (not found.is_dir() or any(found.iterdir())):
            raise CheckpointError(f"{place}: is there already and not empty; give a folder that is not there yet")
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be read ({error.strerror})") from error
    writable_folder(found.parent, str(place))
    return found


def copy_folder(source: Path, place: Path) -> Path:
    """Verify a folder that ``write_folder`` wrote, and copy it completely or not at all. Returns ``place``.

    Raises:
        CheckpointError: the source is damaged, the copy cannot be written, or ``place`` holds something.
    """
    verify_folder(source)
    place = new_folder(place)

    def fill(staging: Path) -> None:
        named = [source / name for name in (*named_files(source), *UNHASHED)]
        for path in (path for path in named if path.is_file()):
            (staging / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, staging / path.relative_to(source))

    try:
        write_folder(place, fill)
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be written ({error.strerror})") from error
    return place


def write_manifest(folder: Path) -> None:
    """Write the manifest of a folder: the size and SHA-256 of every file that is in it now."""
    digests = {_name(f, folder): _digest(f) for f in _files(folder) if f.name != MANIFEST}
    manifest = {name: {"bytes": size, "sha256": sha} for name, (size, sha) in digests.items()}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def verify_folder(folder: Path) -> None:
    """Check that a folder holds the files that were written, byte for byte, and no others that a loader would read.

    Raises:
        CheckpointError: no manifest, a missing or changed file, or a file that a loader would read but that is not in
            the manifest. The message names the file.
    """
    path = folder / MANIFEST
    try:
        manifest = {str(k): (int(v["bytes"]), str(v["sha256"])) for k, v in json.loads(path.read_bytes()).items()}
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read, so nothing vouches for the folder ({error})") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a manifest ({error})") from error
    present = {_name(f, folder) for f in _files(folder)} - {MANIFEST}
    for name in sorted(n for n in present ^ manifest.keys() if n in manifest or _READ.fullmatch(n)):
        what = "missing" if name in manifest else f"not in {MANIFEST}, so it does not belong there"
        raise CheckpointError(f"{folder / name}: {what}")
    for name, (size, sha) in manifest.items():
        found = _digest(folder / name)
        if found != (size, sha):
            change = f"{found[0]} bytes instead of {size}" if found[0] != size else "its contents changed"
            raise CheckpointError(f"{folder / name}: damaged since it was written ({change})")


def named_files(folder: Path) -> list[str]:
    """Names of the files in the manifest of a verified folder."""
    return list(json.loads((folder / MANIFEST).read_bytes()))


def remove_strangers(folder: Path) -> None:
    """Remove files of a fetched folder that its manifest does not name, such as those of an earlier fetch."""
    try:
        named = set(named_files(folder))
    except (OSError, ValueError, AttributeError):
        return  # ``verify_folder`` reports what is wrong
    for path in _files(folder):
        if _name(path, folder) not in named and path.name != MANIFEST:
            path.unlink()


def remove_folder(folder: Path) -> None:
    """Remove a folder. It is renamed first, so that a killed removal leaves no partial folder under its name."""
    trash = _hidden(folder, "trash")
    os.replace(folder, trash)
    shutil.rmtree(trash, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove what killed writers left under ``parent``. Call it only while nothing writes there.

    If a writer was killed after it renamed the old folder and before it named the new one, the old one gets its name
    back.
    """
    for left in sorted(parent.glob(".*.old")):
        place = parent / left.name[1:].rsplit(".", maxsplit=2)[0]
        if not place.exists() and _complete(left):
            os.replace(left, place)
    for suffix in ("new", "old", "trash"):
        for left in parent.glob(f".*.{suffix}"):
            shutil.rmtree(left, ignore_errors=True)


def _complete(folder: Path) -> bool:
    try:
        verify_folder(folder)
    except CheckpointError:
        return False
    return True


def only_writer(folder: Path, key: str, inside: bool = True) -> FileLock:
    """Take a lock on ``folder`` until it is released or the process ends.

    Args:
        folder: the folder that no other process may write.
        key: setting or option that chose the folder.
        inside: put the lock file into the folder, which must exist; otherwise beside it.

    Raises:
        ConfigError: another process writes there; the message names ``key``.
    """
    lock = FileLock(folder / ".lock" if inside else folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"{key}: another run is writing to {folder}; give this one a folder of its own") from error
    return lock


def _hidden(place: Path, suffix: str) -> Path:
    return place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.{suffix}")


def _files(folder: Path) -> list[Path]:
    """The files of a folder that belong in its manifest.

    Links are refused, since they lead out of the folder. Only the links of the hub's cache are allowed, which point
    from a snapshot to the blobs beside it.
    """
    found: list[Path] = []
    blobs = folder.resolve().parent.parent / "blobs"
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.is_symlink() and blobs not in path.resolve().parents:
            raise CheckpointError(f"{path}: is a link; a checkpoint holds plain files only")
        if path.is_file() and _name(path, folder) not in UNHASHED:
            found.append(path)
    return found


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _digest(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    sha, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha.update(block)
            size += len(block)
    return size, sha.hexdigest()


def flush(path: Path) -> None:
    """Have the disk store a file, or the names in a folder, now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
