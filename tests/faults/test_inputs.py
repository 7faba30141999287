"""Inputs as programs give them: one that cannot be answered says why, and costs the others nothing."""

import json
import os
import pickle
import subprocess
import sys

import pytest
from tiny import answer_by_text, save_system

from dynamo_mtl.errors import CheckpointError, ConfigError, InputError
from dynamo_mtl.inference.api import DynamoInference


@pytest.fixture
def folder(system, tmp_path):
    answer_by_text(system)
    return save_system(system, tmp_path / "model")


@pytest.fixture
def model(folder):
    return DynamoInference(folder, device="cpu")


def test_a_question_needs_its_passage(model):
    """Also with an instruction, whose words would else be where the answer is looked for."""
    for given in ({"text": "Ada sang. Tom slept.", "instruction": "Who sang?"}, {"question": "Who sang?"}):
        with pytest.raises(InputError, match="'qa' answers from a passage, and there is none; give it as context"):
            model({**given, "task_hint": "qa"})
    answer = model({"question": "Who?", "context": "Ada sang.", "instruction": "Say:", "task_hint": "qa"})
    assert "Ada sang."[answer["start"] : answer["end"]] == answer["answer"]


def test_one_bad_input_costs_the_others_nothing(model):
    given = ["good", None, {"text": "a", "kontext": "b"}, {"question": "Who?", "task_hint": "qa"}, "fine", 7]
    answers = model(given, task_hint="sentiment")
    assert [("label" in answer, answer.get("error_type")) for answer in answers] == [
        (True, None), (False, "validation"), (False, "validation"), (False, "validation"), (True, None),
        (False, "validation"),
    ]  # fmt: skip
    assert answers[2]["error"] == "input 3: input: no key 'kontext'; did you mean 'context'?"
    streamed = list(model(iter(given), task_hint="sentiment", batch_size=2))
    assert [answer.get("error") for answer in streamed] == [answer.get("error") for answer in answers]


def test_what_is_no_input_is_one_sentence(model):
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ConfigError, match="found DataFrame; of a table give a column as a list"):
        model(pandas.DataFrame({"text": ["a", "b"]}))
    with pytest.raises(ConfigError, match=r"top_k: found 2\.0; use a whole number"):
        model("a", top_k=2.0)
    with pytest.raises(ConfigError, match="text should be a text, found NoneType"):
        model.route(None)


def test_what_was_not_read_is_said(model):
    long = "good " * 2000
    answer = model({"text": long, "task_hint": "sentiment"})
    assert answer["truncated"]["characters"] == len(long)
    assert 0 < answer["truncated"]["read_characters"] < 96 * 6
    assert "truncated" not in model({"text": "good", "task_hint": "sentiment"})
    asked = model({"question": "who " * 200, "context": "Ada sang.", "task_hint": "qa"})
    assert asked["truncated"] == {"characters": 9, "read_characters": 9}


def test_decoding_settings_are_those_of_the_task_that_answers(system, tmp_path):
    """One task has beams, another has none: drawing is refused for the first alone."""
    tasks = {name: task.model_copy() for name, task in system.config.tasks.items()}
    beams = tasks["summarization"].generation.model_copy(update={"num_beams": 2})
    tasks["summarization"] = tasks["summarization"].model_copy(update={"generation": beams})
    system.config = system.config.model_copy(update={"tasks": tasks})
    model = DynamoInference(save_system(system, tmp_path / "beams"), device="cpu")
    assert "translation_text" in model("a dog", task_hint="translation", sampling_temperature=0.7)
    with pytest.raises(ConfigError, match="sampling_temperature"):
        model("a dog", task_hint="summarization", sampling_temperature=0.7)
    with pytest.raises(ConfigError, match="min_new_tokens 9 is more than max_new_tokens 3"):
        model("a dog", task_hint="translation", min_new_tokens=9, max_new_tokens=3)
    with pytest.raises(ConfigError, match="length_penalty: input should be less than or equal to 10"):
        model("a dog", task_hint="translation", length_penalty=2000.0)


def test_a_model_can_be_pickled(model):
    again = pickle.loads(pickle.dumps(model))
    given = {"text": "good", "task_hint": "sentiment"}
    assert again(given) == model(given)


def test_a_forked_child_answers(folder):
    """After a pass with two threads. Fails where the child waits for threads that only its parent has."""
    program = (
        "import os, sys, torch\n"
        "torch.set_num_threads(2)\n"
        "from dynamo_mtl import DynamoInference\n"
        f"model = DynamoInference({str(folder)!r}, device='cpu')\n"
        "texts = ['good ' * 60] * 40\n"
        "before = [a['label'] for a in model(texts, task_hint='sentiment')]\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if [a['label'] for a in model(texts, task_hint='sentiment')] == before else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=120, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def _run(*arguments, **environment):
    command = [sys.executable, "-m", "dynamo_mtl.cli", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, check=False)


def test_the_command_takes_texts_as_they_are(folder, tmp_path, capsys):
    from dynamo_mtl.cli import main

    for text in ("-5 degrees", "--- what?", "- item"):
        with pytest.raises(SystemExit) as stop:
            main(["predict", str(folder), text, "--task-hint", "sentiment", "--json"])
        assert stop.value.code == 0
        assert json.loads(capsys.readouterr().out)["sentiment"]["label"]
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(folder), "--contxt"])
    assert stop.value.code == 2
    assert "no such option: --contxt" in capsys.readouterr().err


def test_a_console_without_the_letters_shows_the_rest(folder):
    done = _run("predict", str(folder), "naïve “café”", "--task-hint", "translation", PYTHONIOENCODING="ascii")
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    done = _run("predict", str(folder), "a", "--task-hint", "größe", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, b"Traceback" in done.stderr) == (2, False)


def test_version_and_order_of_commands(capsys):
    from dynamo_mtl.cli import main

    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("dynamo-mtl 0.")
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    places = [listed.index(f" {name} ") for name in ("init", "doctor", "data", "train", "evaluate", "predict", "serve")]
    assert places == sorted(places)


def test_home_is_written_out(monkeypatch, folder, tmp_path):
    from dynamo_mtl.cli import main

    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        main(["rename-task", str(folder), "--name", "qa", "--to", "ask", "--output=~/renamed"])
    assert stop.value.code == 0
    assert "ask" in DynamoInference("~/renamed", device="cpu").task_names


def test_a_task_has_no_name_that_answers_use(session_config):
    from dynamo_mtl.checkpoint.stored_config import read_system_config

    with pytest.raises(ConfigError, match="the name 'routing_info' is a key of answers"):
        read_system_config(
            {"data": {"routing_info_data_path": "sample"}, "tasks": {"routing_info": {"type": "sentiment"}}}
        )


@pytest.mark.parametrize("name", ["result.json", "LICENSE", "merged/model.safetensors", "notes/adapters/a.txt"])
def test_what_lies_beside_a_checkpoints_files_does_no_harm(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("{}")
    assert DynamoInference(folder, device="cpu").task_names


def test_a_checkpoint_can_hold_its_own_copy(folder, model):
    copy = model.save_pretrained(folder / "copy")
    again = DynamoInference(folder, device="cpu").save_pretrained(folder / "again")
    assert DynamoInference(copy, device="cpu").task_names == DynamoInference(again, device="cpu").task_names
    assert not (again / "copy").exists()


def test_a_folder_of_links_is_a_checkpoint(folder, tmp_path):
    """As the hub's cache holds one."""
    blobs, linked = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    for path in sorted(folder.rglob("*")):
        place = linked / path.relative_to(folder)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            blob = blobs / str(len(list(blobs.iterdir())))
            path.rename(blob)
            place.symlink_to(blob)
    assert DynamoInference(linked, device="cpu").task_names
    (linked / "router.safetensors").unlink()
    (linked / "router.safetensors").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="is a link"):
        DynamoInference(linked, device="cpu")
