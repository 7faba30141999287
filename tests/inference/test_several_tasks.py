"""Several tasks asked about one text: answers under their names, which do not depend on what else is asked."""

import json

import pytest
import torch
from tiny import KINDS, make_kinds_system, nearly, save_system

from dynamo_mtl.config.validation import validate
from dynamo_mtl.errors import ConfigError, InputError
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.inference.task_choice import choose_tasks, groups
from dynamo_mtl.tasks.task_config import TaskConfig

TEXT = "Ada sang in Rome. The bed was a surprise, and the bus stop is gone."
OTHERS = ["great handle, poor zip", "Who has a lamp? " * 9, "Ada Abel of Kestrel Bank visited Halvik"]
OPEN = [name for name in KINDS if name not in ("quiz", "faq")]
"""Tasks that answer a text alone."""
BOUND = 1e-5
"""How far probabilities may differ with what shares the batch, in fp32."""


@pytest.fixture
def model(session_config, tmp_path):
    system = make_kinds_system(session_config.model.model_dump())
    config = system.config
    grouped = {
        name: task.model_copy(update={"group": "reviews"} if name in ("aspects", "marks") else {})
        for name, task in config.tasks.items()
    }
    system.config = config.model_copy(update={"tasks": grouped})
    return DynamoInference(save_system(system, tmp_path / "model"), device="cpu")


def test_each_task_answers_as_if_it_were_asked_alone(model):
    together = model(TEXT, tasks=OPEN)
    assert list(together["answers"]) == OPEN
    for name in OPEN:
        alone = model(TEXT, task_hint=name)
        expected = {key: value for key, value in alone.items() if key not in ("task", "routing")}
        assert together["answers"][name] == nearly(expected, BOUND)
        assert {**together["routing"], "rejected": False} == nearly(alone["routing"], BOUND)


def test_answers_do_not_depend_on_other_questions_or_other_texts(model):
    expected = model(TEXT, tasks=OPEN)["answers"]
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        order = [OPEN[place] for place in torch.randperm(len(OPEN), generator=generator).tolist()]
        some = order[: 1 + int(torch.randint(len(OPEN), (), generator=generator))]
        texts = [*OTHERS, TEXT, *OTHERS[:1]]
        found = model(texts, tasks=some)[3]["answers"]
        assert list(found) == some
        assert found == nearly({name: expected[name] for name in some}, BOUND)


def test_the_layers_below_the_adapters_run_once_for_a_text(model, monkeypatch):
    tokens = []
    trunk = type(model.system.model).trunk

    def counted(self, batch, *arguments, **named):
        tokens.append(len(batch.ids))
        return trunk(self, batch, *arguments, **named)

    monkeypatch.setattr(type(model.system.model), "trunk", counted)
    model(TEXT)
    model(TEXT, tasks=OPEN)
    assert len(tokens) == 2
    assert tokens[0] == tokens[1]


def test_groups_and_all_leave_out_tasks_that_the_input_does_not_fit(model):
    assert groups(model.system) == {"reviews": ["aspects", "marks"]}
    assert list(model(TEXT, tasks="group:reviews")["answers"]) == ["aspects", "marks"]
    assert list(model(TEXT, tasks="all")["answers"]) == OPEN
    quiz = model({"text": "Who?", "choices": ["a", "b"]}, tasks="all")
    assert list(quiz["answers"]) == ["quiz"]
    assert choose_tasks("auto", model.system) is None
    assert list(choose_tasks("marks, topics,marks", model.system).names) == ["marks", "topics"]


def test_a_task_that_cannot_answer_says_so_under_its_name_beside_the_others(model):
    found = model.predict(TEXT, tasks=["faq", "marks"], return_routing_info=True)
    assert list(found) == ["faq", "marks", "routing_info"]
    assert found["faq"] == {"error": "the task 'faq' answers from a passage, and there is none; give it as context",
                            "error_type": "validation"}  # fmt: skip
    assert set(found["marks"]) == {"value"}
    with pytest.raises(InputError, match="the task 'quiz' chooses among options"):
        model.predict(TEXT, tasks=["quiz"])


def test_settings_that_one_task_cannot_use_are_said_under_its_name(model, monkeypatch):
    task = model.system.tasks["sums"]
    longer = task.config.generation.model_copy(update={"min_new_tokens": 4})
    monkeypatch.setattr(task, "config", task.config.model_copy(update={"generation": longer}))
    found = model(TEXT, tasks=["topics", "sums"], top_k=1, num_beams=2)
    assert "summary_text" in found["answers"]["sums"]
    with pytest.raises(ConfigError):
        model(TEXT, tasks=["topics"], max_new_tokens=2)


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        (["marks", "topic"], "tasks: no task 'topic'; did you mean 'topics'"),
        ("group:review", "tasks: no group 'review'; did you mean 'reviews'"),
        ([], "tasks: expected names of tasks, all, or group:NAME"),
        ([3], "tasks: expected names of tasks, all, or group:NAME"),
    ],
)
def test_unknown_tasks_are_one_sentence(model, tasks, sentence):
    with pytest.raises(ConfigError, match=sentence):
        model(TEXT, tasks=tasks)


def test_a_hint_beside_tasks_is_refused(model):
    with pytest.raises(ConfigError, match="task_hint: found beside tasks"):
        model(TEXT, tasks="all", task_hint="marks")
    [found] = model([{"text": TEXT, "task_hint": "marks"}], tasks="all")
    assert "task_hint stands beside tasks" in found["error"]


def test_a_group_is_a_setting_of_a_task():
    assert validate(TaskConfig, {"type": "qa", "group": "g"}, "tasks.faq").group == "g"
    with pytest.raises(ConfigError, match=r"tasks\.faq: group"):
        validate(TaskConfig, {"type": "qa", "group": ""}, "tasks.faq")


def test_json_of_all_answers(model):
    assert json.loads(json.dumps(model(TEXT, tasks="all")))["answers"].keys() == set(OPEN)
