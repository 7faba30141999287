"""A router that learns what else belongs to a task: it does, and nothing else changes."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_added_tasks import CPU, OLD, TEXTS, _settings

from dynamo_mtl.checkpoint.folder import MEMORY
from dynamo_mtl.cli import main
from dynamo_mtl.config import AddedTask, extended_config, load_config
from dynamo_mtl.data.samples.classification import TOPICS
from dynamo_mtl.errors import CheckpointError, ConfigError, DataError
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.inference.feedback import FeedbackFile, feedback_rows, read_feedback
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.lifecycle.adapt_router import _forms, adapt_router
from dynamo_mtl.lifecycle.add_task import add_task
from dynamo_mtl.lifecycle.branch_phase import last_branch
from dynamo_mtl.lifecycle.editing import remove_task
from dynamo_mtl.model.router import Router, RouterConfig
from dynamo_mtl.storage import write_manifest
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.system import load_system
from dynamo_mtl.tasks.task import Example
from dynamo_mtl.training.run import train

PARTS = ("adapters/*/*", "heads/*", "vocabularies/*")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_settings):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "config.yaml").write_text(dump_yaml(_settings(tiny_settings, folder)))
    overrides = ["training.router.feature_epochs=40", "training.router.mixture_steps=0"]
    return train(load_config(folder / "config.yaml", overrides), (1, 2))


@pytest.fixture(scope="module")
def parcels(tmp_path_factory):
    """Texts of a kind that no task has seen."""
    place = tmp_path_factory.mktemp("texts") / "parcels.txt"
    lines = [
        f"PARCEL #{n} >> {'lost' if n % 3 else 'broken'} {'at sea' if n % 2 else 'on the road'} !!" for n in range(60)
    ]
    place.write_text("\n".join(lines), encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def adapted(trained, parcels, tmp_path_factory):
    place = tmp_path_factory.mktemp("adapted")
    config = load_config(trained / "config.yaml", [f"log_dir={place}"])
    task = _unlikely(trained, parcels)
    return task, place / "model", adapt_router(trained, place / "model", config, task, parcels)


def _unlikely(model, parcels):
    """The task that the texts are sent to least."""
    routes = [answer["task"] for answer in DynamoInference(model)(parcels.read_text().splitlines())]
    return min(OLD, key=routes.count)


def _files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for part in PARTS for p in folder.glob(part)}


def test_the_texts_go_to_the_task_and_no_remembered_input_of_another_does(adapted):
    task, _, report = adapted
    assert report.task == task
    assert report.held_out == 12
    assert report.right_before < 0.5
    assert report.right_after >= 0.9
    assert report.remembered > 20
    assert report.lost == 0


def test_the_texts_are_known_afterwards(adapted, trained, parcels):
    """Fails if they are still rejected as unlike all known inputs."""
    task, folder, _ = adapted
    answers = DynamoInference(folder)(parcels.read_text().splitlines())
    assert sum(answer["task"] == task for answer in answers) >= 54
    assert sum(answer["routing"]["rejected"] for answer in answers) <= 6


def test_adapters_heads_and_what_the_router_knew_stay_byte_for_byte(adapted, trained):
    _, folder, _ = adapted
    assert _files(folder) == _files(trained)
    before, after = (load_file(place / "router.safetensors") for place in (trained, folder))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"branches"}


def test_answers_of_a_given_task_stay_the_same(adapted, trained):
    old, new = DynamoInference(trained), DynamoInference(adapted[1])
    for task in OLD:
        for text in TEXTS:
            assert new.predict(text, task_hint=task) == old.predict(text, task_hint=task)


def test_a_task_can_be_added_and_one_removed_afterwards(adapted, tmp_path):
    task, folder, _ = adapted
    config = extended_config(
        folder / "config.yaml",
        AddedTask("topic", "classification", "sample"),
        [f"tasks.topic.labels={list(TOPICS)}", "tasks.topic.train_examples=40",
         "tasks.topic.validation_examples=12", f"log_dir={tmp_path}"],
    )  # fmt: skip
    assert config.router.branch_adapters == [OLD.index(task), None]
    system, _ = load_system(add_task(folder, tmp_path / "more", config), CPU)
    assert system.model.router.adapters == 4
    other = next(name for name in OLD if name != task)
    left, _ = load_system(remove_task(tmp_path / "more", tmp_path / "less", other), CPU)
    assert left.config.router.branch_adapters == [list(left.tasks).index(task), None]
    gone, _ = load_system(remove_task(tmp_path / "more", tmp_path / "gone", task), CPU)
    assert gone.config.router.branches == system.config.router.branches[1:]
    assert gone.config.router.branch_adapters == []


@pytest.mark.parametrize("with_text", [True, False])
def test_feedback_teaches_what_the_texts_do(trained, parcels, tmp_path, with_text):
    """Fails if rows without a text are not learned, or those of another task are."""
    task = _unlikely(trained, parcels)
    other = next(name for name in OLD if name != task)
    predictor, file = DynamoInference(trained, device="cpu").predictor, FeedbackFile(tmp_path / "feedback.jsonl")
    texts = [TextInput(text) for text in parcels.read_text().splitlines()]
    file.add(feedback_rows(predictor, texts[:59], task, with_text))
    file.add(feedback_rows(predictor, texts[59:], other, with_text))
    content = (tmp_path / "feedback.jsonl").read_text()
    assert ("PARCEL" in content) == with_text
    config = load_config(trained / "config.yaml", [f"log_dir={tmp_path}"])
    report = adapt_router(trained, tmp_path / "model", config, task, tmp_path / "feedback.jsonl")
    assert report.held_out == 12
    assert report.right_after >= 0.9
    assert report.lost == 0


def test_rows_of_feedback_that_cannot_be_used_are_left_out_and_counted(trained, tmp_path, caplog):
    place = tmp_path / "feedback.jsonl"
    system, _ = load_system(trained, CPU)
    own = {"right_task": "sentiment", "trunk": system.backbone.weight_hash, "router_features": "AAAA"}
    rows = [
        own,
        {**own, "trunk": "other"},
        {"right_task": "sentiment"},
        {"right_task": "sentiment", "input": {"text": " "}},
        {"right_task": "sentiment", "input": {"text": "Fine.", "instruction": "Do it."}},
        {"right_task": "other"},
    ]
    place.write_text("\n".join(map(json.dumps, rows)) + "\n{ cut off")
    found = read_feedback(place, system, "sentiment")
    assert [(one.text, instruction) for one, instruction in found.inputs] == [("Fine.", "Do it.")]
    assert len(found.features) == 0
    said = (
        "5 rows are left out", "1: 'router_features' is damaged", "1: noted by a model over another backbone",
        "1: neither 'input' nor 'router_features'", "1: the text is empty", "1: not valid JSON",
    )  # fmt: skip
    assert [reason for reason in said if reason not in caplog.text] == []
    with pytest.raises(DataError, match="has 1 texts of task 'sentiment'"):
        adapt_router(trained, tmp_path / "a", load_config(trained / "config.yaml"), "sentiment", place)


def test_an_input_with_an_instruction_is_learned_with_it(trained):
    """Fails if its bare text is taught as the task's."""
    system, _ = load_system(trained, CPU)
    forms = _forms(
        system, "translation", [(Example("A film.", None, ""), "Put it into German")], np.random.default_rng(0)
    )
    assert [(one.text, one.instruction) for one in forms] == [("A film.", "Put it into German")]


def test_a_model_with_one_task_has_nothing_to_learn(trained, parcels, tmp_path):
    alone = trained
    for name in OLD[1:]:
        alone = remove_task(alone, tmp_path / name, name)
    with pytest.raises(ConfigError, match="has no other task than 'sentiment'"):
        adapt_router(alone, tmp_path / "a", load_config(alone / "config.yaml"), "sentiment", parcels)


def test_a_widened_task_gets_the_branchs_share_beside_its_own():
    """Shares s of the tasks before and sigmoid(d): the task has s + (1 - s) sigmoid(d), the others are scaled."""
    torch.manual_seed(3)
    first = Router(RouterConfig(hidden_sizes=[4], dropout=0.0, temperature=2.0), 24, 3).eval()
    router = first.with_branch(5, 1).eval()
    features = torch.randn(6, 24)
    with torch.no_grad():
        before, after = first(features).weights, router(features).weights
        gained = torch.sigmoid(last_branch(router)(features, before))
    assert router.adapters == 3
    assert torch.allclose(after[:, 1:2], before[:, 1:2] + (1 - before[:, 1:2]) * gained, atol=1e-6)
    assert torch.allclose(after[:, [0, 2]], before[:, [0, 2]] * (1 - gained), atol=1e-6)


def test_a_branch_for_each_adapter_number():
    with pytest.raises(ValueError, match="branch_adapters: found 1 for 2 branches"):
        RouterConfig(branches=[4, 4], branch_adapters=[0])


def test_what_cannot_be_learned_is_said_before_anything_is_written(trained, parcels, tmp_path, capsys):
    config = load_config(trained / "config.yaml", [f"log_dir={tmp_path}"])
    with pytest.raises(ConfigError, match="--task: no task 'sentimnt'; did you mean 'sentiment'"):
        adapt_router(trained, tmp_path / "a", config, "sentimnt", parcels)
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match="has 2 texts of task 'sentiment'; give at least 8"):
        adapt_router(trained, tmp_path / "a", config, "sentiment", tmp_path / "few.txt")
    with pytest.raises(SystemExit, match="2"):
        main(["adapt-router", str(trained), "--task", "sentiment", "--inputs", str(tmp_path / "no.txt")])
    assert "no.txt: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_model_that_remembers_nothing_is_refused(trained, parcels, tmp_path):
    old = shutil.copytree(trained, tmp_path / "old")
    (old / MEMORY).unlink()
    write_manifest(old)
    with pytest.raises(CheckpointError, match="train its router with this version"):
        adapt_router(old, tmp_path / "a", load_config(trained / "config.yaml"), "sentiment", parcels)
