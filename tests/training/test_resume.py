"""A run that was killed and goes on ends exactly where one that was never killed ends."""

import errno
import os
import shutil
import signal

import pytest
from torture import outcome, torture

from dynamo_mtl.cli import main
from dynamo_mtl.config import load_config
from dynamo_mtl.config.identity import changed_setting
from dynamo_mtl.errors import CheckpointError, ConfigError
from dynamo_mtl.storage import verify_folder
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.training import loop, step
from dynamo_mtl.training import saved_states as states
from dynamo_mtl.training.run import train
from dynamo_mtl.training.stop_signals import Stopped


class Killed(BaseException):
    """Stands for SIGKILL: nothing is tidied up for it."""


@pytest.fixture(scope="module")
def settings(tiny_settings):
    """Three tasks of three kinds; dropout everywhere, so that the random state matters."""
    names = ("sentiment", "qa", "translation")
    kept = {key: {n: tiny_settings[key][n] for n in names} for key in ("tasks", "lora_configs")}
    data = {k: v for k, v in tiny_settings["data"].items() if not k.endswith("_data_path")}
    data |= {f"{name}_data_path": "sample" for name in names}
    training = {**tiny_settings["training"], "max_steps": 4, "save_every": 2, "log_every": 3}
    training["router"] = {"examples_per_task": 8, "feature_epochs": 2, "feature_batch_size": 8, "mixture_steps": 3}
    return {**tiny_settings, **kept, "data": data, "training": training}


def _config(settings, folder, *overrides):
    (folder / "config.yaml").write_text(dump_yaml(settings))
    places = [f"log_dir={folder / 'logs'}", f"checkpoint_dir={folder / 'checkpoints'}"]
    return load_config(folder / "config.yaml", [*places, *overrides])


@pytest.fixture(scope="module")
def uninterrupted(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(_config(settings, folder), (1, 2, 3))
    assert not (folder / "checkpoints" / "resume").exists()
    return outcome(folder)


def _kill_at(monkeypatch, phase, step, action):
    real = loop.TrainingLoop.update

    def update(self, batch):
        if self.phase.name == phase and self.step == step:
            action()
        real(self, batch)

    monkeypatch.setattr(loop.TrainingLoop, "update", update)


def _die():
    raise Killed


@pytest.mark.promise("T1")
@pytest.mark.parametrize(
    ("phase", "step"),
    [
        ("phase 1 sentiment", 3),  # a step after the newest state, between two log lines
        ("phase 1 qa", 0),  # between two tasks
        ("phase 1 translation", 2),  # right after a state
        ("phase 2 router", 5),
        ("phase 2 mixture", 0),
        ("phase 2 mixture", 2),
        ("phase 3 joint", 0),  # between two phases
        ("phase 3 joint", 2),  # the ranking was made with parameters that are gone
    ],
)
def test_a_killed_run_ends_where_an_uninterrupted_one_does(settings, uninterrupted, tmp_path, monkeypatch, phase, step):
    """Fails without: restoring the random state, the moments, the best state, the ranking, or cutting the log."""
    config = _config(settings, tmp_path)
    with monkeypatch.context() as patch:
        _kill_at(patch, phase, step, _die)
        with pytest.raises(Killed):
            train(config, (1, 2, 3))
    train(config, (1, 2, 3), resume="latest")
    assert outcome(tmp_path) == uninterrupted
    assert not (tmp_path / "checkpoints" / "resume").exists()


@pytest.mark.promise("T1")
def test_a_phase_checkpoint_is_written_again_if_the_run_died_right_after_it(
    settings, uninterrupted, tmp_path, monkeypatch
):
    """Fails if a checkpoint that is there already is not replaced, or ends the run."""
    config = _config(settings, tmp_path)
    with monkeypatch.context() as patch:
        real = states.RunStates.stage_done
        patch.setattr(states.RunStates, "stage_done", lambda self: _die() if self.stage == 2 else real(self))
        with pytest.raises(Killed):
            train(config, (1, 2, 3))
    assert (tmp_path / "checkpoints" / "phase_1").exists()
    train(config, (1, 2, 3), resume="latest")
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.promise("T3")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_once_and_ends_with_its_code(
    settings, uninterrupted, tmp_path, monkeypatch, capsys, number, code
):
    """Fails without ``StopSignals``: the process would end without a state, by another code."""
    _config(settings, tmp_path)
    arguments = ["train", str(tmp_path / "config.yaml"), f"log_dir={tmp_path / 'logs'}"]
    arguments.append(f"checkpoint_dir={tmp_path / 'checkpoints'}")
    before = signal.getsignal(number)  # ignored already, where a shell started the tests in the background
    with monkeypatch.context() as patch:
        _kill_at(patch, "phase 1 qa", 2, lambda: os.kill(os.getpid(), number))
        with pytest.raises(SystemExit) as stop:
            main(arguments)
    assert stop.value.code == code
    assert "go on with --resume latest" in capsys.readouterr().err
    assert (tmp_path / "checkpoints" / "resume" / "state-001-00000003").exists()
    assert signal.getsignal(number) is before
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--resume", "latest"])
    assert stop.value.code == 0
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.promise("T3")
def test_a_signal_while_a_phase_is_saved_loses_nothing(settings, uninterrupted, tmp_path, monkeypatch):
    """Fails if the run ends before the stage that is complete is saved as complete."""
    config = _config(settings, tmp_path)
    with monkeypatch.context() as patch:
        real = states.RunStates.save_phase

        def asked_to_stop(self, *arguments):
            os.kill(os.getpid(), signal.SIGTERM)
            real(self, *arguments)

        patch.setattr(states.RunStates, "save_phase", asked_to_stop)
        with pytest.raises(Stopped):
            train(config, (1, 2, 3))
    newest = max((tmp_path / "checkpoints" / "resume").glob("state-*"))
    assert newest.name == "state-003-00000000"
    train(config, (1, 2, 3), resume="latest")
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.promise("T3")
def test_a_second_ctrl_c_leaves_at_once(settings, tmp_path, monkeypatch):
    """Fails if a second signal is only noted: a state would be written."""

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    _kill_at(monkeypatch, "phase 1 sentiment", 1, twice)
    with pytest.raises(Stopped):
        train(_config(settings, tmp_path), (1, 2, 3))
    assert not (tmp_path / "checkpoints" / "resume").exists()


@pytest.fixture
def killed(settings, tmp_path, monkeypatch):
    """A run that died in phase 1 with two states."""
    config = _config(settings, tmp_path)
    with monkeypatch.context() as patch:
        _kill_at(patch, "phase 1 qa", 3, _die)
        with pytest.raises(Killed):
            train(config, (1, 2, 3))
    assert sorted(p.name for p in (tmp_path / "checkpoints" / "resume").glob("state-*")) == [
        "state-001-00000000", "state-001-00000002",
    ]  # fmt: skip
    return config, tmp_path


@pytest.mark.promise("C1")
def test_the_newest_state_that_verifies_is_taken(killed, uninterrupted, caplog):
    """Fails if ``newest_state`` takes the newest name."""
    config, folder = killed
    newest = folder / "checkpoints" / "resume" / "state-001-00000002" / "loop.safetensors"
    content = newest.read_bytes()
    newest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"loop\.safetensors: damaged"):
        train(config, (1, 2, 3), resume=str(newest.parent))
    train(config, (1, 2, 3), resume="latest")
    assert "passed over" in caplog.text
    assert outcome(folder) == uninterrupted


def test_all_states_damaged_is_said(killed):
    config, folder = killed
    for state in (folder / "checkpoints" / "resume").glob("state-*"):
        (state / "loop.json").unlink()
    with pytest.raises(CheckpointError, match="all 2 states of the run are damaged"):
        train(config, (1, 2, 3), resume="latest")


def test_a_state_is_not_lost_by_starting_anew_nor_taken_for_another_run(killed, settings):
    config, folder = killed
    with pytest.raises(ConfigError, match=r"resume: holds the state of a run that did not end.*--resume latest"):
        train(config, (1, 2, 3))
    with pytest.raises(CheckpointError, match="started for phases 1, 2, 3"):
        train(config, (1,), resume="latest")
    other = _config(settings, folder, "training.lora_lr=0.5")
    with pytest.raises(CheckpointError, match=r"started with training\.lora_lr 0\.0005, now it is 0\.5"):
        train(other, (1, 2, 3), resume="latest")
    fewer = _config(settings, folder, "tasks.qa.train_examples=59")
    with pytest.raises(CheckpointError, match=r"started with tasks\.qa\.train_examples 60"):
        train(fewer, (1, 2, 3), resume="latest")
    shutil.rmtree(folder / "checkpoints" / "resume")
    train(_config(settings, folder, "training.max_steps=1"), (1,), resume="latest")  # none is there: from the start


@pytest.mark.promise("C7")
def test_a_second_run_in_the_same_folder_is_refused(settings, tmp_path):
    """Fails without the lock file."""
    from dynamo_mtl.storage import only_writer

    (tmp_path / "checkpoints").mkdir()
    lock = only_writer(tmp_path / "checkpoints", "x")
    with pytest.raises(ConfigError, match="checkpoint_dir: another run is writing"):
        train(_config(settings, tmp_path), (1,))
    lock.release()


@pytest.mark.promise("T11")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_more_ends_the_run_and_older_states_verify(settings, tmp_path, monkeypatch, number):
    """Fails without ``write_folder`` keeping the older folders: they are what the run goes on from."""
    config = _config(settings, tmp_path)

    def no_room(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        _kill_at(patch, "phase 1 qa", 3, lambda: patch.setattr(os, "fsync", no_room))
        with pytest.raises(CheckpointError, match=f"state-001-00000004.*could not be written.*{os.strerror(number)}"):
            train(config, (1, 2, 3))
    found = sorted((tmp_path / "checkpoints" / "resume").iterdir())
    assert [p.name for p in found] == ["state-001-00000000", "state-001-00000002"]
    for state in found:
        verify_folder(state)


@pytest.mark.promise("T4")
def test_the_seed_decides_every_logged_value(settings, uninterrupted, tmp_path):
    """Fails if anything that trains draws from the clock or from an unseeded generator."""
    outcomes = []
    for name, seed in (("again", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        train(_config(settings, tmp_path / name, f"training.seed={seed}"), (1, 2, 3))
        outcomes.append(outcome(tmp_path / name))
    assert outcomes[0] == uninterrupted
    assert outcomes[1][1] != uninterrupted[1]


@pytest.mark.promise("T10")
def test_a_tracker_that_fails_is_left_out_with_one_warning(settings, tmp_path, monkeypatch, caplog):
    """Fails without the guard in ``MetricsLog``: the first logged value would end the run."""
    asked = []

    def down(self, values, step=None, **_):
        asked.append(step)
        raise ConnectionError("tracker is down")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr("accelerate.tracking.WandBTracker.log", down)
    train(_config(settings, tmp_path, "use_wandb=true"), (1,))
    assert asked == [0]
    assert caplog.text.count("the tracker wandb failed and is left out") == 1
    assert len((tmp_path / "logs" / "metrics.jsonl").read_text().splitlines()) > 10


@pytest.mark.promise("T2")
def test_runs_that_are_killed_at_random_moments_end_as_if_they_had_not_been(tmp_path):
    """Fails if folders are removed or written under their names; ``make torture`` kills 50 times."""
    figures = torture(3, tmp_path, 400)
    assert figures["kills"] == 3
    assert figures["checkpoints_verified"] > 0
    assert figures["broken_checkpoints"] == 0
    assert figures["final_state_equal"]


@pytest.mark.promise("T1")
def test_a_run_that_was_killed_between_two_micro_batches_replays_the_step(settings, tmp_path, monkeypatch):
    """Fails if gradients of a step that was cut in half count twice, or its random numbers do."""
    small = "training.token_budget=150"
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    train(_config(settings, straight, small), (1, 2, 3))
    real, calls = step._task_loss, []

    def task_loss(*arguments):
        calls.append(1)
        if len(calls) == 40:
            raise Killed
        return real(*arguments)

    config = _config(settings, killed, small)
    with monkeypatch.context() as patch:
        patch.setattr(step, "_task_loss", task_loss)
        with pytest.raises(Killed):
            train(config, (1, 2, 3))
    train(config, (1, 2, 3), resume="latest")
    assert outcome(killed) == outcome(straight)


def test_a_setting_that_did_not_exist_then_had_its_default(session_config):
    """Fails if every new setting makes all that was trained before it look different."""
    saved = session_config.model_dump()
    for task in ("summarization", "translation"):
        del saved["tasks"][task]["generation"]["sampling_temperature"]
    assert changed_setting(saved, session_config) is None
    task = session_config.tasks["summarization"]
    drawn = task.model_copy(update={"generation": task.generation.model_copy(update={"sampling_temperature": 0.5})})
    now = session_config.model_copy(update={"tasks": {**session_config.tasks, "summarization": drawn}})
    assert changed_setting(saved, now) == ("tasks.summarization.generation.sampling_temperature", None, 0.5)
    gone = {**saved, "unheard_of": 1}
    assert changed_setting(gone, session_config)[0] in (
        "unheard_of",
        "tasks.summarization.generation.sampling_temperature",
    )
