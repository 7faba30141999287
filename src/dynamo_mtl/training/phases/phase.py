"""Interfaces of the training loop: a phase, its batches, and the checkpointer that saves the run."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from dynamo_mtl.training.optimizer import Group
from dynamo_mtl.training.stop_signals import StopSignals

SCORE = "score"
"""The validation value by which the best state is chosen; higher is better."""


class PhaseBatch(Protocol):
    """What a phase draws for one update."""

    @property
    def tokens(self) -> int:
        """Real tokens in this process's share of it."""
        ...

    @property
    def largest(self) -> int:
        """Tokens in the largest micro-batch that can be split; 0 if none can."""
        ...

    def within(self, budget: int) -> PhaseBatch:
        """The same examples in micro-batches of at most ``budget`` tokens."""
        ...


class Phase(abc.ABC):
    """One stretch of training."""

    name: str
    steps: int
    eval_every: int
    groups: list[Group]
    """Parameter groups: exactly what this phase trains."""
    best_at_end: bool = True
    """Whether the phase ends in its best validated state instead of its last one."""

    @abc.abstractmethod
    def draw(self, step: int) -> Any:
        """The batch of an update: a pure function of the seed and ``step``. May run in a worker process."""

    @abc.abstractmethod
    def backward(self, batch: Any, step: int, scale: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Leave the gradients of the batch in the parameters and return the terms of the loss.

        Both are this process's part. Summed over all processes, they are those of the whole batch.
        """

    @abc.abstractmethod
    def validate(self) -> dict[str, float]:
        """Validation values, among them ``score``."""

    def members(self, step: int) -> dict[str, list[int]]:
        """Task → rows of its training table that an update draws; none where it draws no rows."""
        return {}

    def state(self) -> dict[str, Any]:
        """What the phase computed when it began and cannot compute again later, as JSON."""
        return {}


class Checkpointer(Protocol):
    """Saves a run between two steps; called in all processes."""

    stop: StopSignals

    def after_step(
        self, step: int, numbers: Callable[[], dict[str, Any]], tensors: Callable[[], dict[str, Tensor]]
    ) -> None:
        """Save the run if it is due. If the run should stop, save it and raise ``Stopped``."""
        ...
