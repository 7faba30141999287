"""Every kind of label over HTTP, on the command line and on the page."""

import json
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright
from tiny import KINDS, make_kinds_system, nearly, save_system

from dynamo_mtl.cli import main
from dynamo_mtl.strict_yaml import dump_yaml

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIZ = {"text": "Who has a lamp?", "choices": ["the baker", "nobody", "a nurse"]}
INPUTS = [
    {"text": "the bus stop is gone", "task_hint": "topics"},
    {"text": "the bed was a surprise", "task_hint": "aspects"},
    {"text": "great handle, poor zip", "task_hint": "marks"},
    {"text": "great handle, poor zip", "task_hint": "levels"},
    QUIZ,
    {"text": "Ada Abel of Kestrel Bank visited Halvik", "task_hint": "names"},
    {"question": "who sang?", "context": "Ada sang in Rome.", "task_hint": "faq"},
    {"text": "Ada sang in Rome. It rained.", "task_hint": "sums"},
]


@pytest.fixture
def checkpoint(session_config, tmp_path):
    """A model with a task of every kind of label."""
    return save_system(make_kinds_system(session_config.model.model_dump()), tmp_path / "model")


def test_all_kinds_are_answered_in_one_request_as_python_does(serve, model):
    _, client = serve()
    found = client.post("/v1/predict", json={"inputs": INPUTS}).json()
    assert [answer["task"] for answer in found] == list(KINDS)
    for answer, expected in zip(found, model(INPUTS), strict=True):
        assert answer == nearly(json.loads(json.dumps(expected)))
    assert sum(found[4]["probabilities"]) == pytest.approx(1.0, abs=1e-5)
    tasks = client.get("/v1/tasks").json()
    assert [task["name"] for task in tasks if task["takes_choices"]] == ["quiz"]
    routed = client.post("/v1/route", json={"inputs": QUIZ}).json()
    assert routed["predicted_task"] == "quiz"


def test_several_tasks_answer_one_text_in_one_request(serve, model):
    server, client = serve()
    asked = ["topics", "marks", "names", "sums", "faq"]
    body = {"inputs": INPUTS[0]["text"], "tasks": asked}
    found = client.post("/v1/predict", json=body).json()
    assert found == nearly(json.loads(json.dumps(model(body["inputs"], tasks=asked))), 1e-5)
    assert list(found["answers"]) == asked
    assert found["answers"]["faq"]["error_type"] == "validation"
    both = client.post("/v1/predict", json={**body, "inputs": [body["inputs"], "great handle"]}).json()
    assert both[0] == nearly(found, 1e-5)
    everything = client.post("/v1/predict", json={**body, "tasks": "all"}).json()
    assert set(everything["answers"]) == {name for name in KINDS if name not in ("quiz", "faq")}
    assert server.engine.in_flight == 0


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"tasks": ["topic"]}, "tasks: no such task or group; known: topics, "),
        ({"tasks": "group:zebra"}, "tasks: no such task or group"),
        ({"tasks": []}, "tasks: "),
        ({"tasks": "all", "task_hint": "marks"}, "task_hint: found beside tasks"),
        ({"tasks": ["quiz", "faq"]}, "the task 'quiz' chooses among options"),
        ({"tasks": "all", "inputs": ["a"] * 40}, "8 tasks about 40 inputs are 320 questions; send at most 256"),
    ],
)
def test_wrong_tasks_are_one_sentence(serve, more, sentence):
    _, client = serve()
    response = client.post("/v1/predict", json={"inputs": "a", **more})
    assert response.status_code == 422
    assert sentence in response.json()["error"]
    assert "zebra" not in response.text


def test_a_task_that_fails_does_not_take_the_others_with_it(serve, model, monkeypatch):
    _, client = serve()
    task = model.system.tasks["marks"]

    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(task, "answers", broken)
    response = client.post("/v1/predict", json={"inputs": "a", "tasks": ["topics", "marks"]})
    assert response.status_code == 200
    assert response.json()["answers"]["marks"]["error_type"] == "internal"
    assert "label" in response.json()["answers"]["topics"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"text": "a", "choices": ["b"]}, "inputs.choices: list should have at least 2 items"),
        ({"text": "a", "choices": "b"}, "inputs.choices: input should be a valid list"),
        ({"text": "a", "choices": ["b", "c"], "task_hint": "topics"}, "'topics' takes no choices; leave them out"),
        ({"text": "a", "task_hint": "quiz"}, "'quiz' chooses among options, and there are none"),
    ],
)
def test_wrong_choices_are_one_sentence(serve, given, sentence):
    _, client = serve()
    response = client.post("/v1/predict", json={"inputs": given})
    assert response.status_code == 422
    assert sentence in response.json()["error"]


def test_the_command_line_takes_choices_and_prints_probabilities(checkpoint, capsys):
    given = ["predict", str(checkpoint), QUIZ["text"], *(f"--choice={choice}" for choice in QUIZ["choices"])]
    for arguments in ([*given, "--json"], given):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
    first, *rest = capsys.readouterr().out.splitlines()
    answer = json.loads(first)["quiz"]
    assert answer["choice"] in QUIZ["choices"]
    assert f"quiz.probabilities: {'; '.join(f'{share:.3f}' for share in answer['probabilities'])}" in rest


@pytest.mark.parametrize(
    ("task", "row", "sentence"),
    [
        ({"type": "classification", "labels": ["a", "b"], "soft_labels": True},
         {"text": "x", "probabilities": [1, 1]}, "sum to 2; they should sum to 1"),
        ({"type": "classification", "labels": ["a", "b"]}, {"text": "x", "label": "c"}, "'c' of task 't' is out of"),
        ({"type": "multi_label", "labels": ["a", "b"]}, {"text": "x", "labels": ["c"]}, "'c' is no label of task 't'"),
        ({"type": "regression", "score_range": [0, 5]}, {"text": "x", "score": 9}, "the score 9 of task 't' is out of"),
        ({"type": "multiple_choice"}, {"question": "x", "choices": ["a"], "answer": 0}, "or more, found 1"),
        ({"type": "token_classification"}, {"tokens": ["x"], "tags": []}, "a tag for every word"),
        ({"type": "qa"}, {"question": "x", "context": "y", "answers": {"text": []}}, "no_answer: true"),
    ],
)  # fmt: skip
def test_bad_rows_end_a_training_before_it_begins(task, row, sentence, tmp_path, tiny_settings, capsys):
    """Exit code 2, one sentence with file and line, and no traceback."""
    path = tmp_path / "rows.jsonl"
    for place in (path, tmp_path / "validation.jsonl"):
        place.write_text(json.dumps(row) + "\n")
    settings = {
        **tiny_settings, "lora_configs": {},
        "tasks": {"t": {**task, "validation_file": str(tmp_path / "validation.jsonl")}},
        "data": {"paths": {"t": str(path)}, "cache_dir": str(tmp_path / "cache"), "max_source_length": 96,
                 "window_overlap": 16},
        "log_dir": str(tmp_path / "logs"), "checkpoint_dir": str(tmp_path / "checkpoints"),
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(dump_yaml(settings))
    with pytest.raises(SystemExit) as end:
        main(["train", str(tmp_path / "config.yaml")])
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert sentence in said
    assert "rows.jsonl, line 1" in said
    assert "Traceback" not in said


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_page_shows_probabilities_and_choices(serve):
    _, client = serve()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(str(client.base_url))
        page.get_by_label("Text or question").fill(QUIZ["text"])
        page.get_by_text("Context, instruction and choices").click()
        page.get_by_label("Choices, one on a line").fill("\n".join(QUIZ["choices"]))
        page.get_by_role("button", name="Answer", exact=True).click()
        shares = page.get_by_role("list", name="Probabilities")
        expect(shares.get_by_role("listitem")).to_have_count(3)
        expect(shares).to_contain_text("nobody")
        page.get_by_label("Choices, one on a line").fill("")
        page.get_by_label("Task").select_option("names")
        page.get_by_label("Text or question").fill("Ada Abel of Kestrel Bank visited Halvik")
        page.get_by_role("button", name="Answer", exact=True).click()
        expect(page.locator("#answer")).to_contain_text("by names")
        page.get_by_label("Task").select_option("all")
        page.get_by_role("button", name="Answer", exact=True).click()
        expect(page.locator("#answer h3")).to_have_count(len(KINDS) - 2)
        expect(page.locator("#answer h3").first).to_have_text("topics")
        expect(page.locator("#verdict")).to_contain_text("All of these tasks were asked.")
        expect(page.locator("#bars .chosen")).to_have_count(len(KINDS) - 2)
        browser.close()
