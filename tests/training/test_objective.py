"""Every term of the objective against numbers worked by hand."""

import math

import pytest
import torch
from torch import nn

from dynamo_mtl.config.training_config import TrainingConfig
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.training import objective as module
from dynamo_mtl.training.objective import TERMS, Objective, RoutingTerms, register_term


def _inputs(**changes):
    weights = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
    values = {
        "logits": torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
        "weights": weights,
        "routes": torch.tensor([0, 1]),
        "second": weights,
        "twins": torch.zeros(0, 2, dtype=torch.long),
        "temperature": torch.tensor(2.0),
        "scheduled_log_temperature": torch.tensor(0.0),
    }
    return RoutingTerms(**{**values, **changes})


def test_routing_is_the_cross_entropy_with_the_known_task():
    assert float(TERMS["routing"](_inputs())) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)


def test_load_balance_is_zero_at_the_true_mix_and_not_at_uniform():
    # Mean routing (0.6, 0.4) against the mix (0.5, 0.5).
    expected = 0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.4)
    assert float(TERMS["load_balance"](_inputs())) == pytest.approx(expected, abs=1e-6)
    unequal = torch.tensor([0, 0, 0, 1])
    at_mix = torch.tensor([[0.75, 0.25]] * 4)
    uniform = torch.full((4, 2), 0.5)
    assert float(TERMS["load_balance"](_inputs(weights=at_mix, routes=unequal))) == pytest.approx(0, abs=1e-6)
    assert float(TERMS["load_balance"](_inputs(weights=uniform, routes=unequal))) > 0.1
    missing = _inputs(routes=torch.tensor([0, 0]))
    assert float(TERMS["load_balance"](missing)) == pytest.approx(math.log(1 / 0.6), abs=1e-6)


def test_efficiency_is_the_effective_number_of_adapters_less_one():
    expected = (1 / (0.64 + 0.04) + 1 / (0.16 + 0.36)) / 2 - 1
    assert float(TERMS["efficiency"](_inputs())) == pytest.approx(expected)
    assert float(TERMS["efficiency"](_inputs(weights=torch.eye(2)))) == pytest.approx(0)


def test_consistency_is_the_symmetric_kl_of_views_and_of_wordings():
    second = torch.tensor([[0.5, 0.5], [0.4, 0.6]])
    expected = ((0.8 - 0.5) * math.log(0.8 / 0.5) + (0.2 - 0.5) * math.log(0.2 / 0.5)) / 2 / 2
    assert float(TERMS["consistency"](_inputs(second=second))) == pytest.approx(expected, rel=1e-5)
    twins = ((0.8 - 0.4) * math.log(0.8 / 0.4) + (0.2 - 0.6) * math.log(0.2 / 0.6)) / 2
    both = _inputs(second=second, twins=torch.tensor([[0, 1]]))
    assert float(TERMS["consistency"](both)) == pytest.approx(expected + twins, rel=1e-5)
    assert float(TERMS["consistency"](_inputs())) == 0


def test_smoothing_is_the_cross_entropy_with_the_uniform_distribution():
    expected = -sum(math.log(p) for p in (0.8, 0.2, 0.4, 0.6)) / 4
    assert float(TERMS["smoothing"](_inputs())) == pytest.approx(expected)


def test_smoothing_beside_routing_is_label_smoothing():
    logits, routes, epsilon = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4, 0.1
    config = TrainingConfig(smoothing_weight=epsilon / (1 - epsilon), consistency_weight=0.0, temperature_weight=0.0)
    objective = Objective(config)
    inputs = _inputs(logits=logits, weights=logits.softmax(dim=1), routes=routes)
    total = objective.total(objective.routing_terms(inputs), torch.device("cpu"))
    reference = nn.functional.cross_entropy(logits, routes, label_smoothing=epsilon)
    assert float(total) == pytest.approx(float(reference) / (1 - epsilon), rel=1e-5)


def test_entropy_temperature_and_z_loss():
    entropy = -sum(p * math.log(p) for p in (0.8, 0.2, 0.4, 0.6)) / 2
    assert float(TERMS["entropy"](_inputs())) == pytest.approx(entropy)
    assert float(TERMS["temperature"](_inputs())) == pytest.approx(math.log(2) ** 2)
    z = (math.log(math.e + 1) ** 2 + math.log(1 + math.e**2) ** 2) / 2
    assert float(TERMS["z_loss"](_inputs())) == pytest.approx(z, rel=1e-5)


def test_the_objective_weights_every_term_and_leaves_out_those_without_weight():
    objective = Objective(TrainingConfig(routing_weight=2.0, z_loss_weight=0.5, consistency_weight=0.0))
    terms = objective.routing_terms(_inputs())
    assert "consistency" not in terms
    assert "entropy" not in terms
    expected = sum(objective.weights[name] * float(value) for name, value in terms.items())
    assert float(objective.total(terms, torch.device("cpu"))) == pytest.approx(expected)
    assert objective.weights["routing"] == 2.0


@pytest.fixture
def own_terms(monkeypatch):
    monkeypatch.setattr(module, "TERMS", dict(TERMS))


def test_a_function_or_a_module_of_ones_own_takes_part(own_terms):
    @register_term("sharpness")
    def sharpness(inputs):
        return 1 - inputs.weights.max(dim=1).values.mean()

    class Brier(nn.Module):
        def forward(self, predictions, targets, **kwargs):
            assert kwargs["inputs"].logits.shape == predictions.shape
            return (predictions - nn.functional.one_hot(targets, 2)).square().sum(dim=1).mean()

    register_term("brier", Brier())
    objective = Objective(TrainingConfig(term_weights={"sharpness": 1.0, "brier": 1.0}))
    terms = objective.routing_terms(_inputs())
    assert float(terms["sharpness"]) == pytest.approx(0.3)
    assert float(terms["brier"]) == pytest.approx((0.04 + 0.04 + 0.16 + 0.16) / 2)


def test_an_unregistered_term_is_refused():
    with pytest.raises(ConfigError, match=r"term_weights\.sharpnes: no such term"):
        Objective(TrainingConfig(term_weights={"sharpnes": 1.0}))
