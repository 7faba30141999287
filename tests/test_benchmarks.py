"""The races' harness: ratios, verdicts and memory by hand; the published file has every race."""

import json
from pathlib import Path

import experiments
import experiments_routing
import harness
import performance
import pytest
import targets
import torch

from dynamo_mtl.config import load_config

RESULT = Path(__file__).parent.parent / "results" / "bench-cpu.json"
PUBLISHED = [
    "routed_vs_transformers", "routed_over_bare", "peft_mixed_k5", "peft_mixed_k16", "peft_mixed_k64",
    "peft_equal_fp32", "peft_equal_bf16", "adapters_64_over_5_top1", "adapters_64_over_5_soft", "xlora_two_pass",
    "peft_arrow_k32", "train_vs_peft_trainer", "mixed_step_vs_peft", "router_epoch_cached", "generate_vs_no_cache",
    "generate_vs_encoder_decoder", "shared_trunk", "help_seconds",
]  # fmt: skip


def test_a_race_is_the_median_of_paired_ratios(monkeypatch):
    """Pairs of 6/2, 8/2, 10/2 s, in an order that changes: 4, whatever the medians of each side."""
    times = {"above": iter([6.0, 8.0, 10.0]), "below": iter([2.0, 2.0, 2.0])}
    monkeypatch.setattr(harness, "seconds", lambda run, device: next(times[run()]))
    found = harness.race(
        lambda: "above", lambda: "below", torch.device("cpu"), target=4.0, at_least=True, what="", pairs=3, rows=7
    )
    assert (found.low, found.ratio, found.high) == (3.0, 4.0, 5.0)
    assert found.details == {"above_ms": 8000.0, "below_ms": 2000.0, "rows": 7}


@pytest.mark.parametrize(
    ("ratio", "at_least", "met"), [(2.0, True, True), (1.9, True, False), (2.0, False, True), (2.1, False, False)]
)
def test_a_target_is_met_or_not(ratio, at_least, met):
    found = harness.Race(ratio, ratio, ratio, 2.0, at_least, "a over b").to_json()
    assert found["met"] is met
    assert found["target_is"] == ("at least" if at_least else "at most")


def test_extra_memory_is_that_of_the_peak():
    """One array of 8 MiB after another, of which two at a time are alive."""

    def run():
        last = None
        for _ in range(5):
            last = torch.empty(2**21)
        return last

    assert harness.peak_extra_mib(run, torch.device("cpu")) == pytest.approx(16, abs=0.5)


def test_the_published_file_has_every_race_and_draws():
    bench = json.loads(RESULT.read_text(encoding="utf-8"))
    assert [name for name in bench["races"] if name in PUBLISHED] == sorted(PUBLISHED, key=list(bench["races"]).index)
    for found in bench["races"].values():
        assert found["low"] <= found["ratio"] <= found["high"]
        is_above = found["ratio"] >= found["target"]
        assert found["met"] is (is_above if found["target_is"] == "at least" else found["ratio"] <= found["target"])
    for picture in performance.curve_pictures(bench):
        assert picture.png().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("question", "variant"), [(q, v) for q, found in experiments.QUESTIONS.items() for v in found.variants]
)
def test_every_variant_of_an_experiment_is_a_valid_configuration(question, variant, tmp_path):
    """Fails for a key that does not exist, or a task that the experiment is not about."""
    asked = experiments.QUESTIONS[question]
    config = experiments.alone(asked.task, asked.base + asked.variants[variant], tmp_path, "DATA")
    assert list(config.tasks) == list(config.lora_configs) == list(config.data.paths) == [asked.task]


@pytest.mark.parametrize(
    "overrides",
    [
        *experiments_routing.BASES.values(),
        *experiments_routing.JOINT_VARIANTS.values(),
        *experiments_routing.TERM_VARIANTS.values(),
        *experiments_routing.SMOOTHING_VARIANTS.values(),
    ],
)
def test_every_variant_of_routing_is_a_valid_configuration(overrides):
    """Fails for a term or a setting that does not exist; every override arrives."""
    training = load_config(experiments.CONFIG, overrides).training.model_dump()
    for override in overrides:
        key, _, value = override.removeprefix("training.").partition("=")
        found = training
        for part in key.split("."):
            found = found[part]
        assert found == float(value)


def test_a_target_is_met_or_missed_by_a_distance():
    assert targets.Target("x", 0.9, 0.881, 3).row() == ["x", "≥ 0.900", "0.881", "missed by 0.019"]
    assert targets.Target("x", 1.0, 0.5, 1, at_least=False).row() == ["x", "≤ 1.0", "0.5", "met"]
    assert targets.Target("x", 1.0, 1.25, 1, at_least=False).row()[-1] == "missed by 0.2"
