"""The comparison: every system is trained alike, once, and scored on the same examples; baselines are what they say."""

import json
import statistics
from dataclasses import replace

import pytest

from dynamo_mtl.checkpoint.metadata import read_metadata
from dynamo_mtl.cli import main
from dynamo_mtl.config import load_config
from dynamo_mtl.config.comparison_config import SYSTEMS, CompareConfig
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.evaluation import compare as compared
from dynamo_mtl.evaluation.compare import compare, over_seeds
from dynamo_mtl.evaluation.result import read_result
from dynamo_mtl.strict_yaml import dump_yaml

SHORT = {
    "max_steps": 4, "eval_every": 4, "eval_examples": 3, "batch_size": 4,
    "router": {"examples_per_task": 6, "feature_epochs": 1, "mixture_steps": 1, "general_texts": 20},
    "joint": {"max_steps": 1, "examples_per_task": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def job(tiny_settings, tmp_path_factory):
    """A configuration file for a comparison of all systems, run once by the command."""
    folder = tmp_path_factory.mktemp("compare")
    settings = {
        **tiny_settings,
        "tasks": {n: {**t, "validation_examples": 4} for n, t in tiny_settings["tasks"].items()},
        "training": {**tiny_settings["training"], **SHORT},
        "compare": {
            "learning_rates": {"full_finetuning": [1e-4, 1e-3, 1e-2]},
            "trial_share": 0.5,
            "timing_inputs": 1,
            "timing_rounds": 1,
        },
        "checkpoint_dir": str(folder / "checkpoints"),
        "log_dir": str(folder / "logs"),
        "visualization_dir": str(folder / "report"),
    }
    (folder / "job.yaml").write_text(dump_yaml(settings))
    with pytest.raises(SystemExit) as end:
        main(["compare", str(folder / "job.yaml"), "--output", str(folder / "result.json")])
    assert end.value.code == 0
    return folder


def test_every_system_is_scored_on_the_same_examples_with_its_cost(job):
    result = read_result(job / "result.json")
    assert list(result.systems) == [name for name in SYSTEMS if name != "trivial"] + ["trivial"]
    for scores in result.systems.values():
        assert {task: values["n"] for task, values in scores.items()} == dict.fromkeys(result.main_metrics, 4)
    for system, cost in result.costs.items():
        assert cost["inference_ms"] > 0, system
        assert (cost["train_seconds"] is not None) == (
            system in ("dynamo", "single_task", "single_lora", "full_finetuning", "two_pass")
        )
    assert result.costs.keys() == result.systems.keys() - {"trivial"}
    assert result.intervals.keys() == result.systems.keys()
    for name, tasks in result.intervals.items():
        for task, (low, high) in tasks.items():
            value = result.systems[name][task][result.main_metrics[task]]
            assert low - 1e-6 <= value <= high + 1e-6 or result.main_metrics[task] == "bleu"


def test_the_best_of_three_learning_rates_is_trained_in_full(job):
    result = read_result(job / "result.json")
    tried = result.notes["learning_rates"]["full_finetuning"]
    assert set(tried["trial_losses"]) == {"0.0001", "0.001", "0.01"}
    best = min(tried["trial_losses"], key=tried["trial_losses"].get)
    assert tried["chosen"] == float(best)
    place = job / "checkpoints" / "full_finetuning" / "final_model"
    trained = load_config(place / "config.yaml").training
    assert (trained.backbone_lr, trained.step_share) == (float(best), 1.0)
    trial = job / "checkpoints" / "full_finetuning" / "trials" / "0.001" / "final_model"
    assert load_config(trial / "config.yaml").training.step_share == 0.5
    assert -read_metadata(trial).validation_score == tried["trial_losses"]["0.001"]


def test_what_is_trained_is_not_trained_again(job, monkeypatch):
    """Fails if a finished system is ignored, or one with other settings is taken."""
    trained = []
    monkeypatch.setattr(
        compared, "train", lambda config, phases, resume: trained.append((config.checkpoint_dir, phases, resume))
    )
    few = ["compare.systems=[dynamo,single_lora,full_finetuning,two_pass]", "compare.generation_examples=1"]
    config = load_config(job / "job.yaml", few)
    compare(config, config.compare)
    assert trained == []
    other_rate = ["training.backbone_lr=0.5", "compare.learning_rates.full_finetuning=[0.5]"]
    changed = load_config(job / "job.yaml", [*few, *other_rate])
    compare(changed, changed.compare)
    # The rate of full fine-tuning is a setting of its own; for the others it is another setting, so that all differ.
    systems = {place: phases for place, phases, _ in trained}
    assert systems == {
        str(job / "checkpoints"): (1, 2, 3),
        **{str(job / "checkpoints" / name): (1, 2, 3) for name in ("single_lora", "full_finetuning")},
        str(job / "checkpoints" / "two_pass"): (2,),
    }
    assert {resume for *_, resume in trained} == {"latest"}  # what was interrupted goes on


def test_every_system_saw_the_same_settings(job):
    """What differs between the systems is what makes them, and nothing else."""
    base = load_config(job / "checkpoints" / "final_model" / "config.yaml")
    for name, section in (("single_lora", "model"), ("full_finetuning", "model"), ("two_pass", "model")):
        folder = "phase_2" if name == "two_pass" else "final_model"
        other = load_config(job / "checkpoints" / name / folder / "config.yaml")
        assert other.data == base.data
        assert other.tasks == base.tasks
        assert other.lora_configs == base.lora_configs
        assert getattr(other, section) != getattr(base, section)
        free = {"lora_lr": 0.0, "backbone_lr": 0.0}
        assert other.training.model_copy(update=free) == base.training.model_copy(update=free)


def test_means_and_spread_over_seeds_by_hand(job):
    first = read_result(job / "result.json")
    metric = first.main_metrics["sentiment"]

    def with_score(value, seed):
        scores = {**first.systems["dynamo"], "sentiment": {**first.systems["dynamo"]["sentiment"], metric: value}}
        return replace(first, seed=seed, systems={**first.systems, "dynamo": scores})

    found = over_seeds([with_score(0.2, 0), with_score(0.5, 1), with_score(0.8, 2)])
    assert found.systems["dynamo"]["sentiment"][metric] == pytest.approx(0.5)
    assert found.spread["dynamo"]["sentiment"] == pytest.approx(statistics.stdev([0.2, 0.5, 0.8]))
    assert [s["seed"] for s in found.seeds] == [0, 1, 2]
    assert found.seeds[2]["systems"]["dynamo"]["sentiment"][metric] == 0.8
    assert over_seeds([first]) is first


def test_the_report_stands_alone_and_escapes_what_it_shows(job):
    page = (job / "report" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert not [part for part in page.split('"') if part.startswith(("http:", "https:", "//")) and "w3.org" not in part]
    assert page.count("<svg") >= 8
    pictures = {path.stem for path in (job / "report").glob("*.png")}
    assert {"systems", "routing_confusion", "misroutes", "reliability", "risk_coverage", "feature_map"} <= pictures
    analysis = json.loads((job / "report" / "analysis.json").read_text(encoding="utf-8"))
    assert analysis["n"] == sum(kind["n"] for kind in analysis["kinds"].values())


def test_seeds_are_trained_in_folders_of_their_own(job, monkeypatch):
    seen = []
    result = read_result(job / "result.json")
    monkeypatch.setattr(
        compared, "compare", lambda config, *_: seen.append((config.training.seed, config.checkpoint_dir)) or result
    )
    config = load_config(job / "job.yaml")
    compared.compare_seeds(config, CompareConfig(), 3)
    root = str(job / "checkpoints")
    assert seen == [(0, root), (1, f"{root}/seed_1"), (2, f"{root}/seed_2")]


def test_a_system_of_that_name_must_exist(job, capsys):
    with pytest.raises(SystemExit) as end:
        main(["compare", str(job / "job.yaml"), "compare.systems=[dynamo,magic]"])
    assert end.value.code == 2
    assert "magic" in capsys.readouterr().err


def test_a_contradiction_is_said_before_any_training(job, monkeypatch):
    """Full fine-tuning has no frozen backbone to quantize, and a shared adapter no router to compare with."""

    def refuse(*_, **__):
        raise AssertionError("trained")

    monkeypatch.setattr(compared, "train", refuse)
    config = load_config(job / "job.yaml", ["model.quantization=int8"])
    assert compared._baseline_config(config, "full_finetuning", {}).model.quantization is None
    with pytest.raises(ConfigError, match="the system that others are compared with is routed"):
        compare(load_config(job / "job.yaml", ["model.adapters=shared"]), CompareConfig())


def test_serving_settings_train_nothing_anew(job, monkeypatch):
    trained = []
    monkeypatch.setattr(compared, "train", lambda *given, **_: trained.append(given))
    config = load_config(job / "job.yaml", ["serving.port=9999", "training.token_budget=512"])
    compared.train_unless_done(config, compared.final_checkpoint(config), compared.PHASES)
    assert not trained
