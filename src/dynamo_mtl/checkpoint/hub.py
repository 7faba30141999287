"""Fetches models from the hub and pushes models to it, and verifies their files both ways. Loads no PyTorch."""

from __future__ import annotations

from pathlib import Path

from dynamo_mtl.errors import CheckpointError
from dynamo_mtl.storage import MANIFEST, UNHASHED, at_home, named_files, remove_strangers, verify_folder

MARK = "dynamo.json"
"""The file that marks a folder as a model of this package."""


NO_RIGHT = (401, 403, 404)
"""HTTP statuses with which the hub answers a user who lacks permission."""


def fetch(name: str, revision: str | None = None, token: str | None = None) -> Path:
    """Return the folder of a model. A local folder is returned as it is; a model on the hub is fetched and verified.

    Args:
        name: local folder, or the id ``owner/name``.
        revision: branch, tag or commit on the hub.
        token: access token for private models; that of the login, or ``HF_TOKEN``, if None.

    Raises:
        CheckpointError: neither a folder nor a model on the hub, not a model of this package, or a damaged file.
    """
    local = at_home(name)
    if local.exists():
        return local
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(f"{name}: no such folder; give a checkpoint folder or the id of a model, owner/name")
    from huggingface_hub import snapshot_download

    try:
        # A local folder, because the links of the shared cache would lead out of the folder.
        folder = Path(snapshot_download(name, revision=revision, token=token, local_dir=_place(name, revision)))
    except Exception as error:  # the hub's libraries raise many kinds
        raise CheckpointError(
            f"{name}: neither a local folder nor a model that could be fetched from the hub "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error
    if not (folder / MARK).is_file():
        raise CheckpointError(f"{name}: holds no {MARK}, so it is no model of dynamo-mtl")
    remove_strangers(folder)
    verify_folder(folder)
    return folder


def _place(name: str, revision: str | None) -> Path:
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "dynamo" / name.replace("/", "--") / (revision or "main").replace("/", "--")


def push(folder: Path, name: str, private: bool = False, revision: str | None = None, token: str | None = None) -> str:
    """Push a checkpoint to the hub, in one commit.

    Args:
        folder: a checkpoint.
        name: repository ``owner/name``; created if it does not exist.
        private: whether a new repository is private.
        revision: branch; created if it does not exist.
        token: access token that may write; that of the login, or ``HF_TOKEN``, if None.

    Returns:
        The URL of the commit.

    Raises:
        CheckpointError: an incomplete or damaged checkpoint, or the hub refuses it.
    """
    if not (folder / MARK).is_file():
        raise CheckpointError(f"{folder}: not a checkpoint (no {MARK}); train one with: dynamo train")
    verify_folder(folder)
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=revision,
            commit_message="Upload a DYNAMO model",
            allow_patterns=[*named_files(folder), MANIFEST, *UNHASHED, "LICENSE*"],
            delete_patterns="*",  # files of an earlier model would not belong to this one
        )
    except Exception as error:  # the hub's libraries raise many kinds
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = "; log in with hf auth login, or set HF_TOKEN to one that may write" if status in NO_RIGHT else ""
        raise CheckpointError(
            f"{name}: the hub took no model ({type(error).__name__}: {_first_line(error)}){advice}"
        ) from error
    return str(commit.commit_url)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0]
