"""A run says what it does, learns where there is something to learn, and goes on only with what it was started with."""

import json
import logging

import pytest
import torch

from dynamo_mtl.checkpoint.metadata import read_metadata
from dynamo_mtl.cli import main
from dynamo_mtl.config import load_config
from dynamo_mtl.config.overrides import apply_overrides
from dynamo_mtl.errors import CheckpointError, ConfigError
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.tasks.registry import alike_instructions, make_tasks
from dynamo_mtl.training.best_state import BestState
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.metrics_log import Ahead, Progress
from dynamo_mtl.training.optimizer import warmup_and_decay
from dynamo_mtl.training.phases.phase import SCORE
from dynamo_mtl.training.phases.phase_1_adapters import AdapterPhase
from dynamo_mtl.training.run import train
from dynamo_mtl.training.stop_signals import Stopped


@pytest.fixture
def two(tiny_settings, tmp_path):
    """A run of two tasks with labels, on rows of its own."""
    for name, labels in (("parcels", ("late", "lost")), ("bills", ("paid", "open"))):
        rows = [{"text": f"{name} {n} {labels[n % 2]} again", "label": labels[n % 2]} for n in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "data": {**{f"{n}_data_path": str(tmp_path / f"{n}.jsonl") for n in ("parcels", "bills")},
                 "cache_dir": str(tmp_path / "cache"), "max_source_length": 32, "window_overlap": 8},
        "tasks": {"parcels": {"type": "classification", "labels": ["late", "lost"], "validation_share": 0.25},
                  "bills": {"type": "classification", "labels": ["paid", "open"], "validation_share": 0.25}},
        "model": tiny_settings["model"], "router": tiny_settings["router"], "training": tiny_settings["training"],
        "log_dir": str(tmp_path / "logs"), "checkpoint_dir": str(tmp_path / "checkpoints"),
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(settings))
    return path


def test_rows_that_changed_are_seen_by_a_resumed_run(two, tmp_path, monkeypatch):
    """Labels swapped, as many rows as before. Fails where sizes alone are compared."""
    from dynamo_mtl.training.saved_states import RunStates

    real = RunStates.after_step

    def stop(self, step, numbers, tensors):
        self.stop.wanted = 15
        real(self, step, numbers, tensors)

    monkeypatch.setattr(RunStates, "after_step", stop)
    with pytest.raises(Stopped):
        train(load_config(two), (1,))
    monkeypatch.setattr(RunStates, "after_step", real)
    path = tmp_path / "bills.jsonl"
    before = path.read_text()
    path.write_text(
        before.replace('"label": "paid"', '"label": "x"').replace('"open"}', '"paid"}').replace('"x"', '"open"')
    )
    with pytest.raises(CheckpointError, match=r"the rows of 'bills' are not those that the run was started with"):
        train(load_config(two), (1,), "latest")
    path.write_text(before)
    folder = train(load_config(two), (1,), "latest")
    assert set(read_metadata(folder).data_hashes) == {"parcels", "bills"}


def test_a_run_leaves_its_words_and_says_where_it_is(two, tmp_path, caplog):
    """Which task of how many, the time of all, the metric beside the loss, and that phase 3 did nothing."""
    caplog.set_level(logging.INFO, "dynamo_mtl")
    train(load_config(two, ["training.joint.max_steps=0", "training.max_steps=12"]), (1, 2, 3))
    said = (tmp_path / "logs" / "train.log").read_text()
    assert "phase 1 parcels (task 1 of 2)  step" in said
    assert "of all tasks left" in said
    assert "phase 1 bills (task 2 of 2)  step" in said
    assert "accuracy" in said
    assert "phase 3: 0 updates (training.joint.max_steps), so the final model is that of phase 2" in said
    assert said.startswith("20")
    assert "T" in said.split()[0]


def test_the_time_of_all_tasks_counts_what_follows(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "dynamo_mtl")
    progress = Progress("phase 1 a", 10, ahead=Ahead("task 1 of 3", 90.0))
    progress.began -= 5.0  # five updates in five seconds
    progress.line(5, 0.1)
    assert "0:05, about 1:35 of all tasks left" in caplog.text


def test_short_tasks_are_judged_ten_times_by_their_metric(system, tables, session_config):
    source = ExampleSource(system, tables)
    config = session_config.training.model_copy(update={"max_steps": 80, "num_epochs": 99, "eval_every": 100})
    phase = AdapterPhase(source, "qa", config)
    assert (phase.steps, phase.eval_every) == (80, 8)
    values = phase.validate()
    assert values[SCORE] == values["f1"]
    assert values["loss"] > 0
    generation = AdapterPhase(source, "translation", config).validate()
    assert generation[SCORE] == -generation["loss"]


def test_the_metric_chooses_the_state_and_the_loss_between_equals():
    """The loss rises while the metric grows: fails where the loss alone decides, and step 0 wins."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    best = BestState([parameter], None)
    for step, (metric, loss) in enumerate([(5.1, 4.3), (20.0, 5.2), (33.3, 6.0), (33.3, 5.9), (31.0, 4.0)]):
        parameter.data.fill_(step)
        best.update({SCORE: metric, "loss": loss}, step)
    best.restore()
    assert (best.step, parameter.item()) == (3, 3.0)


def test_a_task_that_learned_nothing_is_named(two, caplog):
    """With a learning rate that cannot change an answer, the first state is the best."""
    train(load_config(two, ["training.lora_lr=1e-12", "training.head_lr=1e-12", "training.max_steps=2"]), (1,))
    assert "phase 1 parcels  nothing was learned: no validated state was better than the first one" in caplog.text


def test_tasks_of_one_type_are_asked_for_by_what_they_are(two, caplog):
    tasks = make_tasks(load_config(two).tasks)
    one, other = (set(task.instructions) for task in tasks.values())
    assert not one & other
    assert all("(parcels: late, lost)" in instruction for instruction in one)
    assert not set(tasks["bills"].evaluation_instructions) & set(tasks["bills"].instructions)
    described = make_tasks(load_config(two, ["tasks.bills.description=unpaid invoices"]).tasks)["bills"]
    assert all("(unpaid invoices)" in instruction for instruction in described.instructions)
    assert alike_instructions(tasks) == []
    same = load_config(two, ["tasks.parcels.instructions=[Which]", "tasks.bills.instructions=[Which]"])
    assert alike_instructions(make_tasks(same.tasks))[0].startswith("parcels and bills share instructions")
    train(same.model_copy(update={"training": same.training.model_copy(update={"max_steps": 1})}), (1,))
    assert "parcels and bills share instructions" in caplog.text


def test_a_task_without_a_twin_is_asked_for_as_before(session_config):
    tasks = make_tasks(session_config.tasks)
    assert not any(task.is_specific for task in tasks.values())


def test_a_configuration_that_differs_from_the_checkpoint_does_not_win(two, tmp_path, caplog):
    """What was trained with overrides is used with its file: what a model is, the checkpoint says."""
    folder = train(load_config(two, ["router.hidden_sizes=[8]", "training.max_steps=1"]), (1, 2))
    model = DynamoInference(folder, two)
    assert model.system.config.router.hidden_sizes == [8]
    assert "differs from what" in caplog.text
    assert "router.hidden_sizes" in caplog.text
    changed = tmp_path / "other.yaml"
    changed.write_text("model: {base_model_name: nobody/no-model, precision: bf16}\nrouter: {on_rejection: error}\n")
    model = DynamoInference(folder, changed)
    assert model.system.config.router.on_rejection == "error"
    assert model.system.model.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("schedule", "values"),
    [("cosine", [1.0, 0.5, 0.0]), ("linear", [1.0, 0.5, 0.0]), ("constant", [1.0, 1.0, 1.0])],
)
def test_schedules_fall_as_they_are_called(schedule, values):
    factor = warmup_and_decay(101, 0.01, schedule)
    assert factor(0) == 1.0
    assert [factor(step) for step in (1, 51, 101)] == pytest.approx(values)
    assert warmup_and_decay(101, 0.1, schedule)(4) == pytest.approx(0.5)


def test_keys_of_other_trainers_are_answered_with_ours(two):
    with pytest.raises(ConfigError, match=r"unknown key 'training\.gradient_accumulation_steps'; training\.batch_size"):
        load_config(two, ["training.gradient_accumulation_steps=4"])
    with pytest.raises(ConfigError, match=r"unknown key 'training\.learning_rate'; use training\.lora_lr"):
        load_config(two, ["training.learning_rate=4"])


def test_an_override_holds_a_number_sign():
    settings = {}
    apply_overrides(settings, ["a.b=issue #12", "c=3 # no comment", "d='quoted #1'", "e=[1, 2]"])
    assert settings == {"a": {"b": "issue #12"}, "c": 3, "d": "quoted #1", "e": [1, 2]}


def test_an_added_task_keeps_others_out_of_its_folder(two, tmp_path):
    from dynamo_mtl.storage import only_writer

    folder = train(load_config(two, ["training.max_steps=1"]), (1, 2))
    place = tmp_path / "more"
    lock = only_writer(place, "--output", inside=False)
    try:
        with pytest.raises(SystemExit) as stop:
            main(
                [
                    "add-task",
                    str(folder),
                    "--name",
                    "third",
                    "--type",
                    "sentiment",
                    "--data",
                    "sample",
                    "--output",
                    str(place),
                ]
            )
        assert stop.value.code == 2
    finally:
        lock.release()
    assert not place.exists()
