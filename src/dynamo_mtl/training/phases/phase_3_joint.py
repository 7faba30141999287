"""Phase 3 trains router, adapters and heads together on mixed tasks, easy examples first.

The mixing weights move from the known task to the router's own choice. Examples are ranked within their task by their
loss after phase 1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from dynamo_mtl.config.training_config import TrainingConfig
from dynamo_mtl.data.mixture import competence
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.objective import Objective
from dynamo_mtl.training.optimizer import router_group, task_groups
from dynamo_mtl.training.phases.mixed import MixedDraw
from dynamo_mtl.training.phases.phase import SCORE, Phase
from dynamo_mtl.training.phases.phase_2_router import HeldOut, routing_validation
from dynamo_mtl.training.step import StepBatch, example_losses, mixture_backward

logger = logging.getLogger(__name__)


def rank_by_loss(source: ExampleSource, config: TrainingConfig) -> dict[str, list[int]]:
    """Rows of each task from easy to hard, out of ``joint.examples_per_task`` rows chosen at random."""
    ranked: dict[str, list[int]] = {}
    for number, (task, tables) in enumerate(source.tables.items()):
        rng = np.random.default_rng([config.seed, 5, number])
        rows = rng.permutation(len(tables.train))[: config.joint.examples_per_task].tolist()
        rate = source.system.config.data.instruction_rate
        examples = [source.example(task, row, source.inputs.draw_instruction(task, rng, rate)) for row in rows]
        losses = example_losses(source.system, examples, config.token_budget)
        ranked[task] = [row for _, row in sorted(zip(losses, rows, strict=True))]
    return ranked


class JointPhase(Phase):
    """Trains everything but the backbone."""

    def __init__(
        self,
        source: ExampleSource,
        config: TrainingConfig,
        held_out: HeldOut,
        ranked: dict[str, list[int]] | None = None,
    ) -> None:
        """Rank the examples, unless ``ranked`` gives the ranking from the start of the phase."""
        self.name = "phase 3 joint"
        self.source, self.config, self.held_out = source, config, held_out
        self.objective = Objective(config)
        self.steps = config.joint.max_steps
        self.eval_every = min(config.eval_every, max(1, self.steps // 4))
        if ranked is None:
            logger.info("%s  ranking examples by their loss", self.name)
            ranked = rank_by_loss(source, config)
        self.mixed = MixedDraw(source, config, self.steps, config.seed + 3, ranked)
        factor = config.joint.lr_factor
        self.groups = [router_group(source.system.model, config.router_lr * factor, config)]
        for task, settings in source.system.config.tasks.items():
            lora_lr = (settings.training.lora_lr or config.lora_lr) * factor
            head_lr = (settings.training.head_lr or config.head_lr) * factor
            self.groups += task_groups(source.system.model, task, config, lora_lr, head_lr)
        share = max(1, config.eval_examples // 2)
        self.validation = {task: source.validation(task, share).encoded for task in source.tables}

    def draw(self, step: int) -> StepBatch:
        """Mixed tasks from the easiest share that the curriculum allows."""
        return self.mixed.draw(step, self._share(step))

    def members(self, step: int) -> dict[str, list[int]]:
        """Task → rows that a step draws."""
        return self.mixed.members(step, self._share(step))

    def _share(self, step: int) -> float:
        ramp = self.config.joint.curriculum_share * self.steps
        progress = min(1.0, step / ramp) if ramp else 1.0
        return competence(progress, self.config.joint.initial_competence)

    def backward(self, batch: StepBatch, step: int, scale: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The whole objective; the router's share in the mixture grows from 0 to 1."""
        progress = step / max(1, self.steps - 1)
        self.source.system.model.router.schedule_temperature(1.0)
        return mixture_backward(self.source.system, batch, self.objective, progress, scale)

    def validate(self) -> dict[str, float]:
        """Mean validation loss of each task under the router's own choice, their mean, and the routing accuracy."""
        system, budget = self.source.system, self.config.token_budget
        means = {
            task: _mean(example_losses(system, e, budget, own_routing=True)) for task, e in self.validation.items()
        }
        losses = {f"loss_{task}": value for task, value in means.items()}
        return {**routing_validation(system, self.held_out), SCORE: -_mean(list(means.values())), **losses}

    def state(self) -> dict[str, Any]:
        """The ranking, which depends on the parameters at the start of the phase."""
        return {"ranked": self.mixed.ranked}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
