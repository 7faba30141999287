"""Folders that are written whole or not at all, and found out when they were changed."""

import json
import os
import subprocess
import sys

import pytest

from dynamo_mtl import storage
from dynamo_mtl.errors import CheckpointError, ConfigError
from dynamo_mtl.storage import MANIFEST, only_writer, remove_folder, sweep, verify_folder, write_folder


def _fill(content):
    def fill(folder):
        (folder / "part").mkdir()
        (folder / "part" / "a.txt").write_text(content)
        (folder / "b.txt").write_text("same")

    return fill


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "saved", _fill("one"))
    return tmp_path / "saved"


def test_a_written_folder_verifies_and_nothing_is_left_beside_it(folder):
    verify_folder(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    sha = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    assert manifest["part/a.txt"] == {"bytes": 3, "sha256": sha}  # printf one | sha256sum
    assert set(manifest) == {"part/a.txt", "b.txt"}
    assert [p.name for p in folder.parent.iterdir()] == ["saved"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "part" / "a.txt").write_text("oNe"), r"part/a\.txt: damaged .*contents changed"),
        (lambda f: (f / "part" / "a.txt").write_text("on"), r"part/a\.txt: damaged .*2 bytes instead of 3"),
        (lambda f: (f / "b.txt").unlink(), r"b\.txt: missing"),
        (lambda f: (f / "c.bin").write_text("x"), r"c\.bin: not in manifest\.json"),
        (lambda f: (f / MANIFEST).unlink(), r"manifest\.json: cannot be read"),
        (lambda f: (f / MANIFEST).write_text("[1]"), r"manifest\.json: not a manifest"),
        (lambda f: (f / "link").symlink_to("/etc/hostname"), r"link: is a link"),
    ],
)
def test_a_change_is_named(folder, change, message):
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        verify_folder(folder)


def test_notes_for_people_and_hidden_files_may_change(folder):
    (folder / "README.md").write_text("mine")
    (folder / ".gitattributes").write_text("x")
    verify_folder(folder)


@pytest.mark.parametrize("fails_at", ["fill", "flush", "replace"])
def test_a_failed_write_leaves_the_older_folder_as_it_was(folder, monkeypatch, fails_at):
    def full(*_):
        raise OSError(28, "No space left on device")

    if fails_at == "flush":
        monkeypatch.setattr(os, "fsync", full)
    if fails_at == "replace":
        real = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: full() if str(a).endswith(".new") else real(a, b))
    with pytest.raises(OSError, match="No space left"):
        write_folder(folder, full if fails_at == "fill" else _fill("two"))
    monkeypatch.undo()
    verify_folder(folder)
    assert (folder / "part" / "a.txt").read_text() == "one"
    assert [p.name for p in folder.parent.iterdir()] == ["saved"]


def test_a_folder_whose_replacement_was_killed_gets_its_name_back(folder):
    folder.rename(folder.with_name(".saved.0123abcd.old"))  # killed before the new one got the name
    sweep(folder.parent)
    verify_folder(folder)
    folder.rename(folder.with_name(".saved.0123abcd.old"))
    (folder.parent / ".saved.0123abcd.old" / "b.txt").unlink()  # half of it is gone: not worth a name
    sweep(folder.parent)
    assert list(folder.parent.iterdir()) == []


def test_a_killed_removal_leaves_no_half_of_a_folder(folder, monkeypatch):
    monkeypatch.setattr(storage.shutil, "rmtree", lambda *_, **__: None)  # killed before the files are gone
    remove_folder(folder)
    assert not folder.exists()
    monkeypatch.undo()
    assert len(list(folder.parent.iterdir())) == 1
    sweep(folder.parent)
    assert list(folder.parent.iterdir()) == []


def test_a_second_writer_is_refused_until_the_first_ends(tmp_path):
    code = "import sys, time; from pathlib import Path; from dynamo_mtl.storage import only_writer\n"
    code += f"lock = only_writer(Path({str(tmp_path)!r}), 'x'); print('locked', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(ConfigError, match="checkpoint_dir: another run is writing to"):
        only_writer(tmp_path, "checkpoint_dir")
    other.kill()  # a lock does not outlive its process
    other.communicate()
    only_writer(tmp_path, "checkpoint_dir").release()
