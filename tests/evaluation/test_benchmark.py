"""Scoring of a checkpoint: misrouted answers, what the oracle is asked again, instructions where they are required."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import save_system

from dynamo_mtl.checkpoint.folder import CONFIG
from dynamo_mtl.config import load_config
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.evaluation.benchmark import evaluate_checkpoint
from dynamo_mtl.evaluation.inputs import make_routed_inputs, task_input
from dynamo_mtl.evaluation.report import result_facts
from dynamo_mtl.evaluation.result import FORMAT, read_result
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import Route
from dynamo_mtl.lifecycle.editing import rename_task
from dynamo_mtl.tasks.tables import first_examples

ROOT = Path(__file__).parents[2]


@pytest.fixture
def saved(system, session_config, tmp_path):
    """A checkpoint of the untrained small system."""
    return save_system(system, tmp_path / "model")


@pytest.fixture
def decided(monkeypatch):
    """Every input is sent to sentiment; what was asked of the predictor is kept."""
    asked = []
    real = Predictor.predict

    def predict(self, inputs, tasks=None, weights=None):
        asked.append((tasks, weights))
        return real(self, inputs, tasks, weights)

    monkeypatch.setattr(Predictor, "predict", predict)
    monkeypatch.setattr(Predictor, "route", lambda self, inputs: [Route([1.0, 0.0, 0.0, 0.0, 0.0], 1.0)] * len(inputs))
    return asked


def test_an_answer_of_the_wrong_type_scores_nothing_and_none_is_asked_for_twice(saved, decided):
    config = load_config(saved / CONFIG)
    result = evaluate_checkpoint(saved, config, "validation", ("dynamo", "oracle"))
    assert result.systems["dynamo"]["qa"]["f1"] == 0
    assert result.systems["dynamo"]["translation"]["bleu"] == 0
    assert result.systems["dynamo"]["sentiment"] == result.systems["oracle"]["sentiment"]
    # Sentiment's answers to its own 12 examples serve both; the other tasks are asked once, for the oracle.
    # What comes after that tells what wrong routes cost.
    assert decided[:5] == [([name] * 12, None) for name in config.tasks]
    assert all(weights is not None for _, weights in decided[5:])
    assert result.routing["bare"]["accuracy"] == pytest.approx(0.2)
    assert result.routing["confusion"] == [[12, 0, 0, 0, 0]] * 5


def test_a_mixture_of_adapters_is_no_oracle(saved, decided):
    config = load_config(saved / CONFIG, ["router.top_k=2"])
    evaluate_checkpoint(saved, config, "validation", ("dynamo", "oracle"))
    mixed = [weights for _, weights in decided[:5]]
    assert all(((weights > 0).sum(dim=1) == 2).all() for weights in mixed)
    assert decided[5:10] == [([name] * 12, None) for name in config.tasks]


def test_a_task_that_requires_an_instruction_is_judged_on_instructed_inputs(system, session_config, tables):
    tasks = dict(session_config.tasks)
    tasks["translation"] = tasks["translation"].model_copy(update={"requires_instruction": True})
    system.config = session_config.model_copy(update={"tasks": tasks})
    examples = {name: first_examples(table.validation, 3) for name, table in tables.items()}
    kinds = make_routed_inputs(system, examples, 0)
    assert [i.task for i in kinds["bare"]].count("translation") == 0
    assert [i.task for i in kinds["instructed"]].count("translation") == 3
    wording = system.tasks["translation"].evaluation_instructions[0]
    assert task_input(system, "translation", examples["translation"][0]).instruction == wording
    assert task_input(system, "sentiment", examples["sentiment"][0]).instruction is None


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"format": FORMAT})])
def test_a_file_that_is_no_result_is_refused(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ConfigError, match="not a result file written by dynamo evaluate"):
        read_result(tmp_path / "r.json")


def test_a_single_task_system_is_scored(saved, tmp_path):
    """The adapters of phase 1 beside the final model; their router may have another shape."""
    from dynamo_mtl.system import load_system

    config = load_config(saved / CONFIG, ["router.hidden_sizes=[5]"])
    alone, metadata = load_system(saved, torch.device("cpu"), config, with_router=False)
    alone.save(tmp_path / "phase_1", metadata, config.to_yaml())
    result = evaluate_checkpoint(saved, load_config(saved / CONFIG), "validation", ("oracle", "single_task"))
    assert result.systems["single_task"] == result.systems["oracle"]


def test_a_phase_1_of_other_tasks_is_left_out(saved, tmp_path, caplog):
    """A task that was added later has none; fails if the whole evaluation ends there."""
    rename_task(saved, tmp_path / "new", "qa", "questions")
    shutil.copytree(saved, tmp_path / "phase_1")
    config = load_config(tmp_path / "new" / CONFIG)
    result = evaluate_checkpoint(tmp_path / "new", config, "validation", ("oracle", "single_task"))
    assert list(result.systems) == ["oracle"]
    assert "single_task is left out" in caplog.text


def test_a_model_without_a_router_has_no_routes(system, session_config, tmp_path):
    """Fails if the choices of a router that nobody trained are scored as if they were its own."""
    model = session_config.model.model_copy(update={"adapters": "shared"})
    system.config = session_config.model_copy(update={"model": model})
    save_system(system, tmp_path / "model")
    result = evaluate_checkpoint(tmp_path / "model", system.config, "validation", ("dynamo", "oracle", "random"))
    assert list(result.systems) == ["oracle"]
    with pytest.raises(ConfigError, match="trained without a router"):
        DynamoInference(tmp_path / "model").route("I love this movie!")


def test_without_training_data_the_rest_is_scored(saved, tmp_path, caplog):
    """One file for a task cannot be both splits, which only what needs the training data asks."""
    row = {"text": "I love this movie!", "label": 1}
    (tmp_path / "one.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    config = load_config(saved / CONFIG, [f"data.paths.sentiment={tmp_path / 'one.jsonl'}"])
    result = evaluate_checkpoint(saved, config, "validation", ("oracle",))
    assert result.systems["oracle"]["sentiment"]["n"] == 3
    assert "rejection" not in result.routing
    assert "what needs the training data is left out" in caplog.text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"systems": []}, "not a result file"),
        ({"systems": {"dynamo": {}}}, r"systems.dynamo.sentiment: has no accuracy"),
        ({"surprise": 1}, "not a result file"),
        ({"format": 99}, "format 99, this program reads format 1"),
    ],
)
def test_a_result_file_of_another_make_is_one_sentence(tmp_path, change, sentence):
    content = json.loads((ROOT / "results" / "quickstart.json").read_text())
    (tmp_path / "r.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ConfigError, match=sentence):
        read_result(tmp_path / "r.json")


def test_phase_1_answers_anew_only_where_a_later_phase_changed_it(saved, tmp_path, monkeypatch):
    """Fails if changed adapters are taken for the same, or the same ones answer twice."""
    from dynamo_mtl.evaluation import benchmark
    from dynamo_mtl.system import load_system

    real, loaded = benchmark.load_predictor, []
    monkeypatch.setattr(benchmark, "load_predictor", lambda *given: loaded.append(given) or real(*given))
    config = load_config(saved / CONFIG)
    for change, times in ((0.0, 0), (5.0, 1)):
        alone, metadata = load_system(saved, torch.device("cpu"))
        with torch.no_grad():
            alone.model.head("sentiment").out.bias += change * torch.tensor([1.0, -1.0])
        alone.save(tmp_path / "phase_1", metadata, config.to_yaml())
        evaluate_checkpoint(saved, config, "validation", ("single_task",))
        assert len(loaded) == times


def test_the_share_of_trained_numbers_is_said_with_and_without_vocabularies(saved):
    result = evaluate_checkpoint(saved, load_config(saved / CONFIG), "validation", ("trivial",))
    counts = {"backbone": 90, "adapters": 20, "router": 3, "heads": 10, "target_vocabularies": 100}
    # Trained: 20 + 3 + 10 = 33 of 90 + 10 = 100, and with the vocabularies 133 of 200.
    text = result_facts(dataclasses.replace(result, parameters=counts))
    assert " 66 % of what full fine-tuning trains, or 33 % without target vocabularies." in text
    assert sum(result.parameters.values()) > result.parameters["backbone"] > 0
    assert "fine-tuning" not in result_facts(dataclasses.replace(result, parameters={}))
