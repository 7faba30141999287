"""How far confidence can be trusted: temperatures and thresholds of the router and of every task's answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from pydantic import ConfigDict
from torch import Tensor

LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of a temperature. If every answer is right, the likelihood keeps growing as it falls."""
NEVER = 2.0
"""A confidence that no answer has."""


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
    """Fit a temperature, then two thresholds that together keep a share of the inputs.

    Each threshold may reject half of the rest.

    Args:
        logits: ``(n, adapters)`` under the router's own temperature.
        routes: ``(n,)`` true adapters.
        coverage: share of the inputs that must not be rejected.
    """
    logits = logits.detach().double()
    temperature = fit_temperature(logits, routes)
    confidence = torch.softmax(logits / temperature, dim=1).amax(dim=1)
    share = (1 - coverage) / 2
    threshold = torch.quantile(confidence, share, interpolation="lower")
    return Calibration(temperature, float(threshold), share, coverage, len(routes))


@dataclass(frozen=True)
class AnswerCalibration:
    """How far the answers of a task can be trusted. The default changes nothing."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    temperature: float = 1.0
    """Divides the head's logits. It changes no label that is chosen."""
    thresholds: list[float] = field(default_factory=list)
    """The probability from which each label of several is given; of extracted answers, from which there is one."""
    abstain_below: float | None = None
    """The task abstains where its confidence is lower."""
    rows: int = 0
    """Number of validation rows that it was fitted on; they chose nothing else."""
    data: str | None = None
    """SHA-256 of the validation table that these rows belong to."""


def fit_temperature(logits: Tensor, truth: Tensor) -> float:
    """Fit a temperature by maximum likelihood (Guo et al. 2017, arXiv 1706.04599, section 4.2).

    Args:
        logits: ``(n, outcomes)``; minus infinity for what cannot be.
        truth: ``(n,)`` the outcome that was right.

    Returns:
        A number between ``LOWEST`` and ``HIGHEST``.
    """
    logits = logits.detach().double()
    # The likelihood is concave in 1 / temperature, so a ternary search finds its maximum.
    low, high = math.log(1 / HIGHEST), math.log(1 / LOWEST)
    for _ in range(100):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if _loss(logits, truth, math.exp(left)) <= _loss(logits, truth, math.exp(right)):
            high = right
        else:
            low = left
    return math.exp(-(low + high) / 2)


def least_confidence(confidence: Tensor, right: Tensor, precision: float) -> float:
    """The lowest confidence from which answers reach a precision.

    Args:
        confidence: ``(n,)`` of the answers.
        right: ``(n,)`` whether each is right.
        precision: share of right answers that is wanted, in [0, 1].

    Returns:
        A confidence of the answers, or a number above 1 if no part of them reaches the precision.
    """
    order = confidence.argsort(descending=True)
    reached = right[order].double().cumsum(0) / torch.arange(1, len(order) + 1)
    known = confidence[order]
    # Equally confident answers are given together, so only the last of them counts.
    is_last = torch.cat([known[1:] != known[:-1], torch.tensor([True])])
    places = ((reached >= precision) & is_last).nonzero().flatten()
    return float(known[places[-1]]) if len(places) else NEVER


def _loss(logits: Tensor, routes: Tensor, inverse: float) -> float:
    return float(torch.nn.functional.cross_entropy(logits * inverse, routes))
