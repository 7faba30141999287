"""A loss or gradient that is not finite never reaches a parameter."""

import json
import math

import pytest
import torch

from dynamo_mtl.config import load_config
from dynamo_mtl.errors import DivergedError
from dynamo_mtl.training.phases import phase_1_adapters
from dynamo_mtl.training.run import train


@pytest.fixture
def poisoned(monkeypatch):
    """The third step has a bad loss or a bad gradient; parameters before and after it are kept."""

    def poison(kind):
        real, calls, seen = phase_1_adapters.task_backward, [], []

        def backward(system, batch, adapter, scale):
            calls.append(1)
            if len(calls) in (3, 4):
                seen.append([p.detach().clone() for p in system.model.bank.parameters()])
            terms = real(system, batch, adapter, scale)
            if len(calls) == 3 and kind == "loss":
                terms = {name: torch.full_like(value, math.nan) for name, value in terms.items()}
            if len(calls) == 3 and kind == "gradient":
                next(p for p in system.model.parameters() if p.grad is not None).grad.view(-1)[0] = math.inf
            return terms

        monkeypatch.setattr(phase_1_adapters, "task_backward", backward)
        return seen

    return poison


@pytest.mark.promise("T6")
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_the_run_stops_before_the_update_and_names_the_batch(tiny_config_file, tmp_path, poisoned, kind):
    """Fails without the check of loss and norm in ``TrainingLoop.update``."""
    poisoned(kind)
    config = load_config(tiny_config_file, ["training.save_every=1"])
    with pytest.raises(DivergedError, match=r"phase 1 sentiment, step 3: loss .*, on sentiment rows \[\d+, "):
        train(config, (1,))
    states = sorted(p.name for p in (tmp_path / "checkpoints" / "resume").glob("state-*"))
    assert states == ["state-000-00000001", "state-000-00000002"]  # what was saved before is there


@pytest.mark.promise("T6")
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_the_step_is_left_out_and_counted(tiny_config_file, tmp_path, poisoned, kind):
    """Fails without the check: the parameters after the step would not be those before it."""
    seen = poisoned(kind)
    train(load_config(tiny_config_file, ["training.on_nonfinite=skip", "training.log_every=1"]), (1,))
    before, after = seen
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    lines = [json.loads(line) for line in (tmp_path / "logs" / "metrics.jsonl").read_text().splitlines()]
    logged = [(line["step"], line.get("skipped")) for line in lines if "loss" in line and "grad_norm" in line][:5]
    assert logged == [(1, None), (2, None), (4, 1), (5, 1), (6, 1)]
