"""Folders that are written whole or not at all, and that say which file has changed since.

A folder is filled under a temporary name, every file is hashed into ``manifest.json``, everything is flushed to the
disk, and only then does the folder get its name. It is removed by taking its name away first. So whatever a killed
process or a full disk leaves behind, a folder that is seen under its name is complete, and one that was changed later
is found out.
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
"""Names that a loader would read if they were there. What else lies beside a folder's files is nobody's business."""
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
            _flush(path)
        if place.exists():
            os.replace(place, old)
        os.replace(staging, place)
        _flush(place.parent)
    except BaseException:
        if old.exists() and not place.exists():
            os.replace(old, place)
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def at_home(path: str | Path) -> Path:
    """A path with a leading ``~`` written out; one of a user who does not exist stays as it is."""
    return Path(os.path.expanduser(path))


def writable_folder(folder: Path, key: str) -> None:
    """Make a folder and see that a file can be written there, before work is done whose result belongs there.

    Raises:
        ConfigError: it cannot be made or written; the message names ``key``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{key}: {folder} cannot be written ({error.strerror})") from error


def new_folder(place: Path) -> Path:
    """Where a folder can be written without taking anything away: resolved, and empty if it is there.

    Raises:
        CheckpointError: something is there already, or the folder around it cannot be written.
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
    """Copy a folder that was written whole, verified, as one that is written whole. Returns ``place``.

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
    """Vouch for the files that are in a folder now: their sizes and SHA-256."""
    digests = {_name(f, folder): _digest(f) for f in _files(folder) if f.name != MANIFEST}
    manifest = {name: {"bytes": size, "sha256": sha} for name, (size, sha) in digests.items()}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def verify_folder(folder: Path) -> None:
    """See that a folder holds the files that were written, byte for byte, and none beside them that would be read.

    Raises:
        CheckpointError: no manifest, or a file that is missing, changed, or not in it though a loader would read it;
            the message names it.
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
    """The files that a verified folder's manifest vouches for."""
    return list(json.loads((folder / MANIFEST).read_bytes()))


def remove_strangers(folder: Path) -> None:
    """Remove files that the manifest of a fetched folder does not name: left of an earlier fetch, or put beside it."""
    try:
        named = set(named_files(folder))
    except (OSError, ValueError, AttributeError):
        return  # verifying says what is wrong
    for path in _files(folder):
        if _name(path, folder) not in named and path.name != MANIFEST:
            path.unlink()


def remove_folder(folder: Path) -> None:
    """Remove a folder: first its name, then its files, so that a killed removal leaves no half of it."""
    trash = _hidden(folder, "trash")
    os.replace(folder, trash)
    shutil.rmtree(trash, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Clear away what killed writers left under ``parent``; call it only while nothing writes there.

    A folder whose writer was killed between taking the old one's name away and giving it to the new one gets it back.
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
        folder: that nobody else shall write.
        key: what chose it.
        inside: the lock is a file in the folder, which is there; else beside it.

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
    """The files that a manifest speaks of.

    Links are refused, since they lead out of the folder, but for those of the hub's cache, whose snapshots link to the
    blobs beside them.
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


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
