"""The search: what it tries, that it goes on where it was, and the configuration that it ends with."""

import optuna
import pytest

from dynamo_mtl.cli import main
from dynamo_mtl.config import load_config
from dynamo_mtl.config.overrides import with_settings
from dynamo_mtl.errors import ConfigError, DivergedError
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.training import tuning, tuning_trials

OLD = ("sentiment", "code_generation")


@pytest.fixture
def config_file(tiny_settings, tmp_path):
    settings = {
        **tiny_settings,
        "data": {k: v for k, v in tiny_settings["data"].items() if not k.endswith("_data_path")}
        | {f"{name}_data_path": "sample" for name in OLD},
        "tasks": {name: tiny_settings["tasks"][name] for name in OLD},
        "lora_configs": {name: tiny_settings["lora_configs"][name] for name in OLD},
        "log_dir": str(tmp_path / "logs"),
        "checkpoint_dir": str(tmp_path / "checkpoints"),
    }
    (tmp_path / "config.yaml").write_text(dump_yaml(settings))
    return tmp_path / "config.yaml"


def test_a_search_ends_with_a_configuration_and_a_picture(config_file, tmp_path, capsys):
    """Fails if a setting that was found is not in the file, or the file is no configuration."""
    folder = tmp_path / "tune"
    with pytest.raises(SystemExit) as stop:
        main(["tune", str(config_file), "--trials", "2", "--share", "0.5", "--output", str(folder)])
    assert stop.value.code == 0
    best = load_config(folder / "best.yaml")
    studies = {s: optuna.load_study(study_name=s, storage=f"sqlite:///{folder / 'trials.db'}")
               for s in (*OLD, "router", "tap layer")}  # fmt: skip
    assert [len(s.trials) for s in studies.values()] == [2, 2, 2, 3]
    assert studies["sentiment"].trials[0].params["lora_configs.sentiment.rank"] == 4  # as it was
    for task in OLD:
        found = studies[task].best_trial.params
        assert best.lora_configs[task].rank == found[f"lora_configs.{task}.rank"]
        assert best.lora_configs[task].alpha == 2.0 * best.lora_configs[task].rank  # the scale stays what it was
        assert best.tasks[task].training.lora_lr == found[f"tasks.{task}.training.lora_lr"]
    assert best.training.router_lr == studies["router"].best_trial.params["training.router_lr"]
    assert best.model.tap_layer == studies["tap layer"].best_trial.params["model.tap_layer"]
    assert sorted(t.params["model.tap_layer"] for t in studies["tap layer"].trials) == [0, 1, 2]
    assert best.training.max_steps == 6  # a trial's shorter training is not what is written
    assert best.training.step_share == 1.0
    assert (folder / "tune.png").read_bytes().startswith(b"\x89PNG")
    assert f"configuration: {folder / 'best.yaml'}" in capsys.readouterr().out


def test_an_interrupted_search_goes_on(config_file, tmp_path, monkeypatch):
    config, folder = load_config(config_file), tmp_path / "tune"
    real, calls = tuning_trials.Trials.adapter_trial, []

    def killed(self, trial, task):
        calls.append(task)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, trial, task)

    monkeypatch.setattr(tuning_trials.Trials, "adapter_trial", killed)
    with pytest.raises(KeyboardInterrupt):
        tuning.tune(config, 2, 0.5, folder, tap=False)
    assert calls == ["sentiment", "sentiment", "code_generation"]
    found = tuning.tune(config, 2, 0.5, folder, tap=False)
    assert calls[3:] == ["code_generation", "code_generation"]
    assert [one.search for one in found] == ["sentiment", "code_generation", "router"]


def test_trials_of_another_configuration_are_not_taken_for_these(config_file, tmp_path):
    folder = tmp_path / "tune"
    tuning.tune(load_config(config_file), 1, 0.5, folder, tap=False)
    with pytest.raises(ConfigError, match="holds trials of another configuration or share"):
        tuning.tune(load_config(config_file, ["training.batch_size=4"]), 1, 0.5, folder, tap=False)


def test_a_trial_that_is_behind_is_given_up(tmp_path):
    """Three trials that reach 1 after their second validation; the fourth is at 0 by then."""
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(tuning_trials.STARTUP, 1), direction="maximize")
    seen = []

    class Phase:
        def __init__(self, scores):
            self.scores = iter(scores)

        def validate(self):
            return {"score": next(self.scores)}

    def objective(trial):
        phase = tuning_trials._Watched(Phase([0.0, 0.0] if trial.number == 3 else [0.0, 1.0, 1.0]), trial)
        for _ in range(3):
            seen.append((trial.number, phase.validate()["score"]))
        return 1.0

    study.optimize(objective, n_trials=4)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3 + ["PRUNED"]
    assert seen[-1] == (3, 0.0)


def test_a_trial_that_diverges_ends_no_search():
    def objective(trial):
        if trial.number == 0:
            raise DivergedError("loss is not finite")
        return 1.0

    study = optuna.create_study()
    study.optimize(tuning_trials._forgiving(objective), n_trials=2)
    assert [t.state.name for t in study.trials] == ["PRUNED", "COMPLETE"]


def test_a_model_without_a_router_is_refused(config_file, tmp_path):
    config = load_config(config_file, ["model.adapters=shared"])
    with pytest.raises(ConfigError, match="tune searches settings of routed adapters"):
        tuning.tune(config, 1, 0.5, tmp_path / "tune")


def test_settings_are_changed_by_their_path(config_file):
    config = load_config(config_file)
    changed = with_settings(config, {"training.router_lr": 0.5, "lora_configs.sentiment.rank": 2})
    assert (changed.training.router_lr, changed.lora_configs["sentiment"].rank) == (0.5, 2)
    assert changed.lora_configs["code_generation"] == config.lora_configs["code_generation"]
    alone = tuning_trials._alone(config, "sentiment")
    assert list(alone.tasks) == list(alone.lora_configs) == list(alone.data.paths) == ["sentiment"]
