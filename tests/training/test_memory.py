"""When memory runs out, micro-batches get smaller and the update stays the same."""

import json

import pytest
import torch
from tiny import without_dropout
from torture import RATES

from dynamo_mtl.config import load_config
from dynamo_mtl.errors import MemoryShortage
from dynamo_mtl.out_of_memory import agreed, run_in_groups
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.training import loop, step
from dynamo_mtl.training.run import train


def _train(settings, folder, monkeypatch, room):
    """Train where no micro-batch of more than ``room`` tokens fits. Returns the log and the budgets in use."""
    folder.mkdir()
    places = {"log_dir": str(folder / "logs"), "checkpoint_dir": str(folder / "checkpoints")}
    (folder / "config.yaml").write_text(dump_yaml({**settings, **places}))
    real, real_update, budgets = step._task_loss, loop.TrainingLoop.update, []

    def task_loss(system, packed, hidden, totals):
        if packed.batch.ids.numel() > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(system, packed, hidden, totals)

    def update(self, batch):
        real_update(self, batch)
        budgets.append(self.budget)

    with monkeypatch.context() as patch:
        patch.setattr(step, "_task_loss", task_loss)
        patch.setattr(loop.TrainingLoop, "update", update)
        train(load_config(folder / "config.yaml"), (1, 2, 3))
    lines = [json.loads(line) for line in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in RATES} for line in lines], budgets


@pytest.fixture
def quiet(tiny_settings):
    """Two tasks without dropout."""
    training = {**tiny_settings["training"], "max_steps": 3, "log_every": 1}
    training["router"] = {"examples_per_task": 8, "feature_epochs": 1, "mixture_steps": 2, "general_texts": 20}
    return {**without_dropout(tiny_settings, ("sentiment", "translation")), "training": training}


@pytest.mark.promise("T8")
def test_the_batch_and_the_losses_stay_the_same(quiet, tmp_path, monkeypatch):
    """Fails without another try, and if the losses of a micro-batch were means over itself."""
    plenty, unlimited = _train(quiet, tmp_path / "plenty", monkeypatch, 10**9)
    little, budgets = _train(quiet, tmp_path / "little", monkeypatch, 120)
    assert set(unlimited) == {None}
    assert any(budget is not None for budget in budgets)
    assert len(plenty) == len(little)
    for ours, theirs in zip(plenty, little, strict=True):
        assert ours.pop("phase") == theirs.pop("phase")
        assert ours == pytest.approx(theirs, rel=3e-5, abs=1e-5)


@pytest.mark.promise("T8")
def test_a_batch_that_never_fits_is_a_clear_error(quiet, tmp_path, monkeypatch):
    """Fails without the end at single examples: the step would be tried for ever."""
    with pytest.raises(MemoryShortage, match="phase 1 sentiment, step 1: not even one example at a time fits"):
        _train(quiet, tmp_path / "none", monkeypatch, 3)


@pytest.mark.promise("T8")
def test_other_errors_are_not_taken_for_it():
    """Fails if every RuntimeError is taken for a lack of memory."""
    with pytest.raises(RuntimeError, match="something else"), agreed():
        raise RuntimeError("something else")


@pytest.mark.promise("T8")
def test_groups_that_do_not_fit_are_halved():
    """Validation and scoring: fails without the second try."""
    done = []

    def run(group):
        if len(group) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        done.append(list(group))

    run_in_groups([5, 4, 3, 2, 1], 100, run)
    assert done == [[0, 1], [2], [3, 4]]
    with pytest.raises(MemoryShortage, match="one example of 9 tokens"):
        run_in_groups([9], 100, lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory.")))
