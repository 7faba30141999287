"""Phase 1: one adapter and its head, alone, on its task's data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from dynamo_mtl.data.mixture import SingleOrder
from dynamo_mtl.training.contracts import SCORE
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.optimizer import task_groups
from dynamo_mtl.training.settings import TrainingConfig
from dynamo_mtl.training.step import StepBatch, example_losses, make_step_batch, task_backward


class AdapterPhase:
    """Trains the adapter and head of one task with all rows sent to that adapter."""

    def __init__(self, source: ExampleSource, task: str, config: TrainingConfig) -> None:
        self.source, self.task, self.config = source, task, config
        own = source.system.config.tasks[task].training
        self.name = f"phase 1 {task}"
        self.order = SingleOrder(len(source.tables[task].train), own.batch_size or config.batch_size, config.seed)
        epochs = own.num_epochs or config.num_epochs
        whole = math.ceil(epochs * self.order.steps_per_epoch)
        self.steps = math.ceil(config.step_share * min(whole, own.max_steps or config.max_steps or whole))
        self.eval_every = config.eval_every
        own_choice = own.load_best_model_at_end
        self.best_at_end = config.load_best_model_at_end if own_choice is None else own_choice
        lora_lr, head_lr = own.lora_lr or config.lora_lr, own.head_lr or config.head_lr
        self.groups = task_groups(source.system.model, task, config, lora_lr, head_lr)
        self.validation = [e.without_shallow_windows() for e in source.validation(task, config.eval_examples)]

    def draw(self, step: int) -> StepBatch:
        """The task's examples of a step, some with an instruction."""
        rng = np.random.default_rng([self.config.seed, 1, step])
        source = self.source
        rate = source.system.config.data.instruction_rate
        drawn = [(row, source.instruction(self.task, rng, rate)) for row in self.order.batch(step)]
        numbers = source.place.share(range(len(drawn)))
        own = [source.example(self.task, *drawn[number]) for number in numbers]
        routes = [source.system.route_of(self.task)] * len(drawn)
        return make_step_batch(own, [], self.config.token_budget, source.system.collate, numbers, routes)

    def backward(self, batch: StepBatch, step: int, scale: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Task loss through this adapter alone."""
        system = self.source.system
        return task_backward(system, batch, system.route_of(self.task), scale)

    def validate(self) -> dict[str, float]:
        """Mean validation loss."""
        losses = example_losses(self.source.system, self.validation, self.config.token_budget)
        mean = sum(losses) / len(losses)
        return {SCORE: -mean, "loss": mean}

    def members(self, step: int) -> dict[str, list[int]]:
        """The task's rows of a step."""
        return {self.task: self.order.batch(step)}

    def state(self) -> dict[str, Any]:
        """Nothing: all of it follows from the configuration."""
        return {}
