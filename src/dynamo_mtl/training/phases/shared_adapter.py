"""Trains all tasks in one phase, for two systems that routing is compared with: a shared adapter, full fine-tuning.

The updates are exactly those of phase 1, with the same batches of the same examples, in a random order of tasks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from dynamo_mtl.config.training_config import TrainingConfig
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.optimizer import shared_groups
from dynamo_mtl.training.phases.phase import SCORE, Phase
from dynamo_mtl.training.phases.phase_1_adapters import AdapterPhase
from dynamo_mtl.training.step import StepBatch


class SharedPhase(Phase):
    """Trains the shared parameters and every head. Each update uses a batch of one task."""

    def __init__(self, source: ExampleSource, config: TrainingConfig) -> None:
        self.name = "shared"
        self.parts = {task: AdapterPhase(source, task, config) for task in source.system.tasks}
        updates = [(task, step) for task, part in self.parts.items() for step in range(part.steps)]
        order = np.random.default_rng([config.seed, 6]).permutation(len(updates))
        self.updates = [updates[place] for place in order]
        self.steps = len(updates)
        self.eval_every = config.eval_every * len(self.parts)
        self.best_at_end = config.load_best_model_at_end
        self.groups = shared_groups(source.system.model, source.system.config.tasks, config)

    def draw(self, step: int) -> StepBatch:
        """One task's batch of phase 1."""
        task, number = self.updates[step]
        return self.parts[task].draw(number)

    def backward(self, batch: StepBatch, step: int, scale: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """That task's loss."""
        task, number = self.updates[step]
        return self.parts[task].backward(batch, number, scale)

    def validate(self) -> dict[str, float]:
        """Mean validation loss of each task, and their mean."""
        losses = {f"loss_{task}": part.validate()["loss"] for task, part in self.parts.items()}
        return {SCORE: -sum(losses.values()) / len(losses), **losses}

    def members(self, step: int) -> dict[str, list[int]]:
        """The rows of that task's batch."""
        task, number = self.updates[step]
        return self.parts[task].members(number)
