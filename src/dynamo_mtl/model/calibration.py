"""How far the router's confidence can be trusted: a temperature and a threshold, fitted on validation inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import ConfigDict
from torch import Tensor

LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of the temperature. If every input is routed correctly, the likelihood keeps growing as it falls."""


@dataclass(frozen=True)
class Calibration:
    """Turns routing logits into a confidence that matches the accuracy. The default changes and rejects nothing."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    temperature: float = 1.0
    """Divides the logits, in addition to the router's own temperature. It changes no decision."""
    threshold: float = 0.0
    """An input that is routed with less confidence is rejected."""
    familiarity: float = 0.0
    """An input with a lower ``OutOfDistribution.familiarity`` is taken for one of no task."""
    coverage: float = 1.0
    """The two thresholds together keep at least this share of the validation inputs."""
    inputs: int = 0
    """Number of validation inputs that it was fitted on."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """``(n, adapters)`` logits under the router's temperature → calibrated probabilities."""
        return torch.softmax(logits / self.temperature, dim=1)


def fit_calibration(logits: Tensor, routes: Tensor, coverage: float) -> Calibration:
    """Fit a temperature by maximum likelihood, then two thresholds that together keep a share of the inputs.

    The temperature follows Guo et al. 2017, arXiv 1706.04599, section 4.2. Each threshold may reject half of the rest.

    Args:
        logits: ``(n, adapters)`` under the router's own temperature.
        routes: ``(n,)`` true adapters.
        coverage: share of the inputs that must not be rejected.
    """
    logits = logits.detach().double()
    # The likelihood is concave in 1 / temperature, so a ternary search finds its maximum.
    low, high = math.log(1 / HIGHEST), math.log(1 / LOWEST)
    for _ in range(100):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if _loss(logits, routes, math.exp(left)) <= _loss(logits, routes, math.exp(right)):
            high = right
        else:
            low = left
    temperature = math.exp(-(low + high) / 2)
    confidence = torch.softmax(logits / temperature, dim=1).amax(dim=1)
    share = (1 - coverage) / 2
    threshold = torch.quantile(confidence, share, interpolation="lower")
    return Calibration(temperature, float(threshold), share, coverage, len(routes))


def _loss(logits: Tensor, routes: Tensor, inverse: float) -> float:
    return float(torch.nn.functional.cross_entropy(logits * inverse, routes))
