"""Keeps the trained parameters of the best validation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dynamo_mtl.training.phases.phase import SCORE

BEST = ("score", "loss", "last", "worse", "step")
"""Attributes of ``BestState`` that a saved state stores beside the parameters."""


class BestState:
    """Remembers the trained parameters of the best validation."""

    def __init__(self, parameters: list[Tensor], patience: int | None) -> None:
        self.parameters, self.patience = parameters, patience
        self.score = self.last = -math.inf
        self.loss = math.inf
        """Breaks ties between states with the same score."""
        self.worse, self.step, self.state = 0, 0, [p.detach().clone() for p in parameters]

    def update(self, values: Mapping[str, float], step: int) -> None:
        """Record the validation values of a step, and keep its parameters if it is better than all earlier steps."""
        score, loss = values[SCORE], values.get("loss", 0.0)
        self.last = score
        if (score, -loss) > (self.score, -self.loss):
            self.score, self.loss, self.worse, self.step = score, loss, 0, step
            for kept, parameter in zip(self.state, self.parameters, strict=True):
                kept.copy_(parameter.detach())
        else:
            self.worse += 1

    @property
    def exhausted(self) -> bool:
        """Whether ``patience`` validations in a row were no better."""
        return self.patience is not None and self.worse >= self.patience

    def restore(self) -> None:
        """Put the kept values back into the parameters."""
        with torch.no_grad():
            for kept, parameter in zip(self.state, self.parameters, strict=True):
                parameter.copy_(kept)
