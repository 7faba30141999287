"""The comparison: every system is trained alike, once, and scored on the same examples; baselines are what they say."""


import pytest

from dynamo_mtl.cli import main
from dynamo_mtl.evaluation.result import SYSTEMS, read_result
from dynamo_mtl.settings import dump_yaml

SHORT = {
    "max_steps": 4, "eval_every": 4, "eval_examples": 3, "batch_size": 4,
    "router": {"examples_per_task": 6, "feature_epochs": 1, "mixture_steps": 1},
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
        "compare": {"learning_rates": {"full_finetuning": [1e-4, 1e-3, 1e-2]}, "trial_share": 0.5, "timing_inputs": 1},
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
    for name, tasks in result.intervals.items():
        for task, (low, high) in tasks.items():
            value = result.systems[name][task][result.main_metrics[task]]
            assert low - 1e-6 <= value <= high + 1e-6 or result.main_metrics[task] == "bleu"
