"""Models go to the hub whole and come back verified, against a stand-in of its HTTP interface."""

import os
import subprocess
import sys

import pytest
from hub_stand_in import TOKEN, hub_stand_in
from tiny import save_system

from dynamo_mtl.checkpoint.hub import fetch, push
from dynamo_mtl.errors import CheckpointError
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.lifecycle.editing import rename_task
from dynamo_mtl.storage import copy_folder

NAME = "ada/five-tasks"


@pytest.fixture
def checkpoint(system, session_config, tmp_path):
    return save_system(system, tmp_path / "model")


@pytest.fixture
def hub(tmp_path):
    """The stand-in: its repositories, and a way to run the command against it."""
    with hub_stand_in() as (address, repositories):

        def run(*arguments, token=TOKEN, code="from dynamo_mtl.cli import main; main()"):
            environment = {
                **os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"),
                "HF_TOKEN": token, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1",
            }  # fmt: skip
            command = [sys.executable, "-c", code, *map(str, arguments)]
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

        yield repositories, run


def _files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_model_comes_back_as_it_went(checkpoint, hub, tmp_path):
    repositories, run = hub
    done = run("push", checkpoint, NAME, "--private", "--revision", "v1")
    assert done.returncode == 0, done.stderr
    assert repositories[NAME]["private"]
    assert repositories[NAME]["revisions"]["v1"] == _files(checkpoint)
    assert repositories[NAME]["revisions"]["main"] == {}
    done = run("pull", NAME, tmp_path / "back", "--revision", "v1")
    assert done.returncode == 0, done.stderr
    assert _files(tmp_path / "back") == _files(checkpoint)
    assert DynamoInference(tmp_path / "back").task_names == DynamoInference(checkpoint).task_names


IN_PYTHON = """
import sys
from dynamo_mtl import DynamoInference

model = DynamoInference.from_pretrained("ada/five-tasks", revision="v1", token=sys.argv[1])
print(model.push_to_hub("ada/copy", private=True, revision="v2", token=sys.argv[1]))
"""


def test_a_model_goes_to_the_hub_and_back_from_python(checkpoint, hub):
    """With the token as an argument: that of the environment may not read."""
    repositories, run = hub
    assert run("push", checkpoint, NAME, "--private", "--revision", "v1").returncode == 0
    done = run(TOKEN, token="hf_other", code=IN_PYTHON)
    assert done.returncode == 0, done.stderr
    assert repositories["ada/copy"]["private"]
    assert repositories["ada/copy"]["revisions"]["v2"] == _files(checkpoint)
    assert "ada/copy" in done.stdout
    assert run("hf_other", code=IN_PYTHON).returncode != 0


def test_a_file_that_was_changed_on_the_hub_is_found_out(checkpoint, hub, tmp_path):
    """Fails if what is fetched is not verified."""
    repositories, run = hub
    assert run("push", checkpoint, NAME).returncode == 0
    files = repositories[NAME]["revisions"]["main"]
    files["heads/qa.safetensors"] = files["heads/qa.safetensors"][:-1] + b"\0"
    done = run("pull", NAME, tmp_path / "back")
    assert done.returncode == 2
    assert "heads/qa.safetensors: damaged since it was written" in done.stderr
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("arguments", "token", "sentence"),
    [
        (("pull", "ada/nothing", "back"), TOKEN, "neither a local folder nor a model that could be fetched"),
        (("pull", NAME, "back"), "hf_other", "neither a local folder nor a model that could be fetched"),
        (("push", "{checkpoint}", NAME), "hf_other", "the hub took no model"),
        (("push", "nowhere", NAME), TOKEN, "nowhere: not a checkpoint"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(arguments, token, sentence, checkpoint, hub, tmp_path):
    repositories, run = hub
    repositories[NAME] = {"private": True, "revisions": {"main": {}}}
    done = run(*(str(a).format(checkpoint=checkpoint) for a in arguments), token=token)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert sentence in done.stderr


def test_a_local_folder_is_taken_as_it_is(checkpoint, tmp_path):
    assert fetch(str(checkpoint)) == checkpoint
    model = DynamoInference.from_pretrained(checkpoint)
    copy = model.save_pretrained(tmp_path / "copy")
    assert _files(copy) == _files(checkpoint)
    with pytest.raises(CheckpointError, match="no such folder"):
        fetch("./nowhere")
    with pytest.raises(CheckpointError, match="no such folder"):
        fetch("a/b/c")


def test_a_copy_replaces_no_other_files(checkpoint, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="is there already and not empty"):
        copy_folder(checkpoint, tmp_path / "full")
    assert (tmp_path / "full" / "letter.txt").read_text() == "dear"


def test_a_model_that_was_pushed_over_another_can_be_fetched(checkpoint, hub, tmp_path):
    """Fails if files of the earlier model stay on the hub, or in the folder that it was fetched to."""
    repositories, run = hub
    assert run("push", checkpoint, NAME).returncode == 0
    assert run("pull", NAME, tmp_path / "first").returncode == 0
    rename_task(checkpoint, tmp_path / "renamed", "qa", "questions")
    assert run("push", tmp_path / "renamed", NAME).returncode == 0
    assert repositories[NAME]["revisions"]["main"].keys() == _files(tmp_path / "renamed").keys()
    done = run("pull", NAME, tmp_path / "second")
    assert done.returncode == 0, done.stderr
    assert _files(tmp_path / "second") == _files(tmp_path / "renamed")


def test_a_damaged_checkpoint_is_not_pushed_or_copied(checkpoint, tmp_path):
    (checkpoint / "router.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"router\.safetensors: damaged"):
        copy_folder(checkpoint, tmp_path / "copy")
    with pytest.raises(CheckpointError, match=r"router\.safetensors: damaged"):
        push(checkpoint, NAME)
