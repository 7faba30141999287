"""Trackers by name: what they are told, and that none of them can stop a training."""

import json
import sys
from types import SimpleNamespace

import pytest

from dynamo_mtl.config import load_config
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.figures import confusion_picture
from dynamo_mtl.training.metrics_log import MetricsLog
from dynamo_mtl.training.run import train

SHORT = ["training.max_steps=1", "training.router.feature_epochs=1", "training.router.mixture_steps=1"]


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_gets_values_heat_maps_and_answers(tiny_config_file, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(load_config(tiny_config_file, [*SHORT, "trackers=[tensorboard]", "wandb_project=five"]), (1, 2))
    events = EventAccumulator(str(tmp_path / "logs" / "five"))
    events.Reload()
    tags = events.Tags()
    assert {"phase 2 router/loss", "phase 1 qa/validation_loss"} <= set(tags["scalars"])
    assert set(tags["images"]) == {f"phase_2 routing {kind}" for kind in ("bare", "instructed", "crossed", "viewed")}
    (text,) = [tag for tag in tags["tensors"] if tag.startswith("phase_2 answers")]
    table = events.Tensors(text)[0].tensor_proto.string_val[0].decode()
    assert table.startswith("| task | input | expected | routed to | answer |")
    assert len(table.splitlines()) == 2 + 5 * 3


def test_a_tracker_that_is_not_installed_is_named(tiny_config_file, monkeypatch):
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "mlflow" else real(name))
    with pytest.raises(ConfigError, match="package mlflow is not installed; install it with: pip install mlflow"):
        train(load_config(tiny_config_file, ["trackers=[mlflow]"]), (1,))


def test_use_wandb_adds_wandb_once(tiny_config_file):
    config = load_config(tiny_config_file, ["trackers=[tensorboard, wandb]", "use_wandb=true"])
    assert config.chosen_trackers == ["tensorboard", "wandb"]
    with pytest.raises(ConfigError, match="'tensorboard', 'mlflow'"):
        load_config(tiny_config_file, ["trackers=[tensorbord]"])


class _Told:
    """A tracker that notes what it is told."""

    def __init__(self, name, can_show=True):
        self.name, self.said = name, []
        if can_show:
            self.log_images = lambda values, step, **_: self.said.append(next(iter(values)))
            self.log_table = lambda name, columns, data, step: self.said.append((name, columns, data))

    def log(self, values, step):
        self.said.append(values)

    def finish(self):
        pass


def test_each_tracker_is_told_in_its_own_way(tmp_path, monkeypatch):
    """MLflow's pictures go through its package: Accelerate's tracker holds a run, which has no such methods."""
    trackers = [_Told("wandb"), _Told("mlflow", False), _Told("trackio", False)]
    package = SimpleNamespace(
        log_image=lambda image, artifact_file: trackers[1].said.append((artifact_file, image.shape[2])),
        log_text=lambda text, place: trackers[1].said.append((place, text)),
    )
    monkeypatch.setitem(sys.modules, "mlflow", package)
    log = MetricsLog(tmp_path, SimpleNamespace(trackers=trackers))
    log.show(confusion_picture([[3, 1], [0, 2]], ["a", "b"], "bare inputs"))
    log.table("answers", ["task", "text"], [["a", "x | y"]])
    log.close()
    markdown = "| task | text |\n| --- | --- |\n| a | x \\| y |"
    assert trackers[0].said == ["routing_confusion", ("answers", ["task", "text"], [["a", "x | y"]])]
    assert trackers[1].said == [("routing_confusion.png", 3), ("answers.md", markdown)]
    assert trackers[2].said == [{"answers": markdown}]  # it takes no pictures


def test_a_tracker_that_cannot_be_started_is_left_out_with_a_warning(tiny_config_file, tmp_path, monkeypatch, caplog):
    """Fails without the guard around the start: a service that is down would end the run before its first step."""

    def down(*_, **__):
        raise ConnectionError("service is down")

    monkeypatch.setattr("accelerate.tracking.WandBTracker.start", down)
    train(load_config(tiny_config_file, [*SHORT, "trackers=[wandb, tensorboard]", f"log_dir={tmp_path}"]), (1,))
    assert "the tracker wandb could not be started and is left out (ConnectionError: service is down)" in caplog.text
    assert list(tmp_path.rglob("events.out.tfevents*"))  # the other one went on


def test_a_tracker_that_fails_takes_no_other_with_it(tmp_path, caplog):
    """Fails if one service that is down silences all of them."""
    broken, well = _Told("wandb"), _Told("trackio", False)
    broken.log = lambda values, step: 1 / 0
    log = MetricsLog(tmp_path, SimpleNamespace(trackers=[broken, well]))
    log.write("phase", 1, {"loss": 1.0})
    log.write("phase", 2, {"loss": 0.5})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the tracker wandb failed" in caplog.text
    assert well.said == [{"phase/loss": 1.0}, {"phase/loss": 0.5}]
    assert log.has_trackers
    log.close()


def test_lines_of_another_run_survive_a_resume(tmp_path):
    """Two runs in one folder of logs: what the second wrote is put aside when the first goes on."""
    quiet = SimpleNamespace(trackers=[])
    first = MetricsLog(tmp_path, quiet)
    first.write("one", 1, {"loss": 1.0})
    end = first.end
    first.close()
    second = MetricsLog(tmp_path, quiet)
    second.write("two", 1, {"loss": 2.0})
    second.close()
    first = MetricsLog(tmp_path, quiet, end)
    first.write("one", 2, {"loss": 0.5})
    first.close()
    assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1.0, 0.5]
    assert json.loads((tmp_path / "metrics.cut.jsonl").read_text())["loss"] == 2.0
