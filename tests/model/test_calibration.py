"""Confidence: the temperature is the one that made the data, the thresholds keep the stated share."""

import numpy as np
import pytest
import torch

from dynamo_mtl.metrics.routing import routing_scores
from dynamo_mtl.model.calibration import HIGHEST, LOWEST, Calibration, fit_calibration


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_spoilt_the_logits_is_found(temperature):
    """Labels are drawn from the true probabilities; the router is made too sure or too unsure of itself."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(40_000, 5, generator=generator) * 2
    routes = torch.multinomial(torch.softmax(true, dim=1), 1, generator=generator).flatten()
    found = fit_calibration(true * temperature, routes, 0.9)
    assert found.temperature == pytest.approx(temperature, rel=0.03)
    spoilt = torch.softmax(true * temperature, dim=1).numpy()
    mended = found.probabilities(true * temperature).numpy()
    assert routing_scores(mended, routes.tolist())["ece"] < 0.01
    if temperature != 1:
        assert routing_scores(spoilt, routes.tolist())["ece"] > 0.05
    assert (spoilt.argmax(1) == mended.argmax(1)).all()  # no decision changes


def test_no_temperature_is_likelier_than_the_one_found():
    generator = torch.Generator().manual_seed(1)
    logits, routes = torch.randn(300, 3, generator=generator), torch.randint(3, (300,), generator=generator)
    found = fit_calibration(logits, routes, 1.0)
    loss = torch.nn.functional.cross_entropy(logits / found.temperature, routes)
    for other in np.geomspace(LOWEST, HIGHEST, 200):
        assert loss <= torch.nn.functional.cross_entropy(logits / other, routes) + 1e-6


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.99, 1.0])
def test_the_threshold_keeps_at_least_the_stated_share_and_hardly_more(coverage):
    generator = torch.Generator().manual_seed(2)
    logits, routes = torch.randn(1000, 4, generator=generator) * 3, torch.randint(4, (1000,), generator=generator)
    found = fit_calibration(logits, routes, coverage)
    kept = (found.probabilities(logits.double()).amax(dim=1) >= found.threshold).float().mean()
    # Half of what may be rejected is left to familiarity.
    assert (1 + coverage) / 2 <= kept + 1e-6 <= (1 + coverage) / 2 + 0.003
    assert found.familiarity == pytest.approx((1 - coverage) / 2)
    assert (found.coverage, found.inputs) == (coverage, 1000)


def test_a_router_without_errors_stays_within_the_bounds():
    """Its likelihood grows without end as the temperature falls."""
    found = fit_calibration(torch.eye(3) * 0.1, torch.arange(3), 1.0)
    assert found.temperature == pytest.approx(LOWEST, rel=1e-3)
    assert fit_calibration(torch.eye(3) * 4, torch.arange(3), 1.0).temperature >= LOWEST * 0.999


def test_the_default_changes_and_rejects_nothing():
    logits = torch.tensor([[1.0, 2.0]])
    assert torch.equal(Calibration().probabilities(logits), torch.softmax(logits, dim=1))
    assert Calibration().threshold == 0.0
