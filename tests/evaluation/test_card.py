"""The model card: figures are those of the result file, in its text and in the hub's model-index."""

from pathlib import Path

import pytest
import yaml

from dynamo_mtl.cli import main
from dynamo_mtl.evaluation.result import read_result
from dynamo_mtl.model.metadata import Metadata
from dynamo_mtl.storage import verify_folder

RESULT = Path(__file__).parents[2] / "results" / "quickstart.json"


@pytest.fixture
def checkpoint(system, session_config, tmp_path):
    sizes = {"sentiment": 60, "qa": 50}
    metadata = Metadata(
        list(system.tasks), "tiny", system.backbone.weight_hash, 1, "final_model", 0, 0.0, dataset_sizes=sizes
    )
    system.save(tmp_path / "model", metadata, session_config.to_yaml())
    return tmp_path / "model"


def _card(checkpoint, *options):
    with pytest.raises(SystemExit) as stop:
        main(["card", str(checkpoint), *options])
    assert stop.value.code == 0
    text = (checkpoint / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_figures_are_those_of_the_result_file(checkpoint):
    front, body = _card(checkpoint, "--result", str(RESULT), "--name", "ada/five")
    result = read_result(RESULT)
    (model,) = front["model-index"]
    assert model["name"] == "ada/five"
    found = {entry["dataset"]["name"]: entry for entry in model["results"]}
    for task, metric in result.main_metrics.items():
        score = result.systems["dynamo"][task][metric]
        assert found[task]["metrics"][0]["value"] == pytest.approx(score)
        assert f"| {task} | {metric} | {score:.4g} | " in body
    assert found["qa"]["task"]["type"] == "question-answering"
    assert found["code_generation"]["task"]["type"] == "text-generation"
    assert f"| bare | {result.routing['bare']['accuracy']:.4f} | " in body
    assert "| sentiment | sentiment | 4 | 60 | no |" in body
    verify_folder(checkpoint)  # the card is no part of what is vouched for


def test_without_a_result_the_card_says_that_nothing_was_measured(checkpoint):
    front, body = _card(checkpoint)
    assert "model-index" not in front
    assert front["base_model"] == "tiny"
    assert "Nothing: no result file was given." in body
