"""The model card: figures are those of the result file, in its text and in the hub's model-index."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dynamo_mtl.checkpoint.metadata import Metadata
from dynamo_mtl.cli import main
from dynamo_mtl.evaluation.result import read_result
from dynamo_mtl.storage import verify_folder

RESULT = Path(__file__).parents[2] / "results" / "quickstart.json"


@pytest.fixture
def make(system, session_config, tmp_path):
    """A checkpoint with some metadata."""

    def save(backbone="tiny", **changes):
        metadata = Metadata(
            list(system.tasks), backbone, system.backbone.weight_hash, 1, "final_model", 0, 0.0,
            dataset_sizes={"sentiment": 60, "qa": 50},
        )  # fmt: skip
        system.save(tmp_path / "model", replace(metadata, **changes), session_config.to_yaml())
        return tmp_path / "model"

    return save


def _card(checkpoint, *options):
    with pytest.raises(SystemExit) as stop:
        main(["card", str(checkpoint), *options])
    assert stop.value.code == 0
    text = (checkpoint / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_figures_are_those_of_the_result_file(make):
    result = read_result(RESULT)
    checkpoint = make(result.backbone, seed=result.seed, commit=result.commit)
    front, body = _card(checkpoint, "--result", str(RESULT), "--name", "ada/five")
    assert "base_model" not in front  # it comes in a package, and the hub does not know its name
    (model,) = front["model-index"]
    assert model["name"] == "ada/five"
    found = {entry["dataset"]["name"]: entry for entry in model["results"]}
    for task, metric in result.main_metrics.items():
        score = result.systems["dynamo"][task][metric]
        assert found[task]["metrics"][0]["value"] == pytest.approx(score)
        assert f"| {task} | {metric} | {score:.4g} | " in body
    assert found["qa"]["task"]["type"] == "question-answering"
    assert found["code_generation"]["task"]["type"] == "text-generation"
    assert f"| plain | {result.routing['bare']['accuracy']:.4f} | " in body
    assert "| sentiment | sentiment | 4 | sample | 60 | no |" in body
    verify_folder(checkpoint)  # the card is no part of what is vouched for


def test_figures_of_another_model_are_refused(make, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["card", str(make("minilm", seed=5)), "--result", str(RESULT)])
    assert stop.value.code == 2
    assert "is of a model with the seed 0, this one's is 5" in capsys.readouterr().err


def test_a_folder_of_this_machine_is_no_base_model(make, tmp_path):
    """The hub refuses such metadata, and the path is nobody's business."""
    front, body = _card(make(str(tmp_path / "secret" / "base")))
    assert "base_model" not in front
    assert "one frozen backbone (base)" in body
    assert str(tmp_path) not in body


def test_without_a_result_the_card_says_that_nothing_was_measured(make):
    front, body = _card(make())
    assert "model-index" not in front
    assert front["base_model"] == "tiny"
    assert "Nothing: no result file was given." in body
