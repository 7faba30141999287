"""Which validation rows choose, which calibrate, and what is scored afterwards."""

import json

import pytest
import torch

from dynamo_mtl.config import load_config
from dynamo_mtl.evaluation.benchmark import evaluate_checkpoint
from dynamo_mtl.evaluation.confidence import confidence_scores
from dynamo_mtl.model.calibration import AnswerCalibration, fit_temperature
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.system import load_system
from dynamo_mtl.tasks.registry import make_tasks
from dynamo_mtl.tasks.tables import all_examples, rows_hash
from dynamo_mtl.training.answer_calibration import FEWEST, calibrate_answers, collect_evidence
from dynamo_mtl.training.examples import ExampleSource, split_validation
from dynamo_mtl.training.run import load_tables, train

WORDS = {"bus": "late", "tram": "full"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_settings):
    """A trained model with a wanted precision and with several labels, and its configuration."""
    folder = tmp_path_factory.mktemp("calibrated")
    for split, count in (("train", 80), ("validation", 2 * FEWEST + 11)):
        for name in ("topic", "several"):
            (folder / name).mkdir(exist_ok=True)
            words = [list(WORDS.items())[n % 2] for n in range(count)]
            rows = [
                {"text": f"the {what} number {n} is {how}", "label": what, "labels": [what, "late"][: n % 3]}
                for n, (what, how) in enumerate(words)
            ]
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        **tiny_settings,
        "data": {"paths": {name: str(folder / name) for name in ("topic", "several")}, "max_source_length": 64,
                 "window_overlap": 16, "cache_dir": str(folder / "cache")},
        "tasks": {
            "topic": {"type": "classification", "labels": ["bus", "tram"], "precision": 0.8},
            "several": {"type": "multi_label", "labels": ["bus", "tram", "late"]},
        },
        "lora_configs": {},
        "log_dir": str(folder / "logs"), "checkpoint_dir": str(folder / "checkpoints"),
    }  # fmt: skip
    (folder / "config.yaml").write_text(dump_yaml(settings))
    config = load_config(folder / "config.yaml")
    return train(config, (1, 2, 3)), config


def _halves(system, tables):
    return split_validation(system.tasks["topic"], tables["topic"].validation)


def test_rows_that_choose_do_not_calibrate(trained):
    """About half each, by a hash. Fails if a row is in both halves, or the router is chosen on the other half."""
    _, config = trained
    tables = load_tables(config, make_tasks(config.tasks))
    whole = [example.text for example in all_examples(tables["topic"].validation)]
    system, _ = load_system(trained[0], torch.device("cpu"))
    halves = [[one.text for one in all_examples(half)] for half in _halves(system, tables)]
    assert sorted(halves[0] + halves[1]) == sorted(whole)
    assert not set(halves[0]) & set(halves[1])
    assert min(map(len, halves)) > len(whole) / 4
    alternating = [{"bus", "tram"} & set(text.split()) for text in halves[0]]
    assert {"bus"} in alternating
    assert {"tram"} in alternating  # although the labels of the file take turns
    source = ExampleSource(system, tables)
    assert [one.text for one in source.calibration("topic").examples] == halves[1]
    assert [one.text for one in source.choosing("topic", 99)] == halves[0]
    assert [one.text for one in source.validation("topic", 99).examples] == halves[0]
    one = tables["topic"].validation.select([0])
    assert [len(half) for half in split_validation(system.tasks["topic"], one)] == [1, 1]


def test_the_calibration_of_a_checkpoint_is_the_one_of_its_rows(trained):
    """Fitted anew on these rows with the final adapter; what is scored are the others."""
    folder, config = trained
    system, metadata = load_system(folder, torch.device("cpu"), config)
    tables = load_tables(config, system.tasks)
    found = metadata.answers["topic"]
    choosing, calibrating = _halves(system, tables)
    assert found.rows == len(calibrating)
    assert found.data == rows_hash(tables["topic"].validation)
    logits, truth = collect_evidence(system, [system.encode(e, "topic") for e in all_examples(calibrating)], 4096)
    assert found.temperature == pytest.approx(fit_temperature(logits, truth), rel=1e-4)
    shares, chosen = torch.softmax(logits.double() / found.temperature, dim=1).max(dim=1)
    kept = shares >= found.abstain_below
    assert not bool(kept.any()) or float((chosen == truth)[kept].double().mean()) >= 0.8
    assert len(metadata.answers["several"].thresholds) == 3
    result = evaluate_checkpoint(folder, config, "validation", ("oracle",))
    assert result.confidence["topic"]["n"] == len(choosing)
    assert result.confidence["several"]["n"] == 3 * len(choosing)
    others = collect_evidence(system, [system.encode(e, "topic") for e in all_examples(choosing)], 4096)
    expected = confidence_scores(*others, found.temperature)
    assert result.confidence["topic"] == pytest.approx(expected, abs=1e-5)
    assert {"coverage", "kept_accuracy"} <= result.systems["oracle"]["topic"].keys()


def test_few_rows_are_no_calibration(trained, caplog):
    folder, config = trained
    system, _ = load_system(folder, torch.device("cpu"), config)
    tables = load_tables(config, system.tasks)
    own = tables["topic"]
    tables["topic"] = type(own)(own.train, own.validation.select(range(FEWEST)))
    with caplog.at_level("INFO", logger="dynamo_mtl"):
        assert calibrate_answers(ExampleSource(system, tables), "topic", 4096) == AnswerCalibration()
    assert f"rows are too few to calibrate its answers; {FEWEST} are needed" in caplog.text


def test_scores_of_confidence_by_hand():
    """Two sure answers, one wrong: a confidence of 0.9 and an accuracy of 0.5. Cooled to 0.5, it is right."""
    logits = torch.log(torch.tensor([[0.9, 0.1], [0.9, 0.1]]))
    scores = confidence_scores(logits, torch.tensor([0, 1]), 1e6)
    assert scores["ece_before"] == pytest.approx(0.4)
    assert scores["ece_after"] == pytest.approx(0.0, abs=1e-5)
    assert scores["brier_before"] == pytest.approx((2 * 0.1**2 + 2 * 0.9**2) / 2)
