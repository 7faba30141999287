"""Phase 1 trains one adapter and its head, alone, on the data of its task."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from dynamo_mtl.config.training_config import TrainingConfig
from dynamo_mtl.data.mixture import SingleOrder
from dynamo_mtl.tasks.generation_task import GenerationTask
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.optimizer import task_groups
from dynamo_mtl.training.phases.phase import SCORE, Phase
from dynamo_mtl.training.step import StepBatch, judge_examples, make_step_batch, task_backward

VALIDATIONS = 10
"""Minimum number of validations of each task, among which the best state is chosen."""


def adapter_updates(source: ExampleSource, task: str, config: TrainingConfig) -> int:
    """Number of updates of a task in phase 1: its epochs, or ``max_steps`` if fewer, times ``step_share``."""
    own = source.system.config.tasks[task].training
    epoch = math.ceil(len(source.tables[task].train) / batch_size(source, task, config))
    whole = math.ceil((own.num_epochs or config.num_epochs) * epoch)
    return math.ceil(config.step_share * min(whole, own.max_steps or config.max_steps or whole))


def batch_size(source: ExampleSource, task: str, config: TrainingConfig) -> int:
    """Examples of an update of a task."""
    return source.system.config.tasks[task].training.batch_size or config.batch_size


class AdapterPhase(Phase):
    """Trains the adapter and head of one task with all rows sent to that adapter.

    Attributes:
        by_loss: whether states are compared by the loss alone. If not, the task's main metric decides, and the loss
            breaks ties. The metric is used for tasks that read their answers off the hidden states.
    """

    def __init__(self, source: ExampleSource, task: str, config: TrainingConfig) -> None:
        self.source, self.task, self.config = source, task, config
        self.by_loss = isinstance(source.system.tasks[task], GenerationTask)
        own = source.system.config.tasks[task].training
        self.name = f"phase 1 {task}"
        self.order = SingleOrder(len(source.tables[task].train), batch_size(source, task, config), config.seed)
        self.steps = adapter_updates(source, task, config)
        self.eval_every = min(config.eval_every, max(1, self.steps // VALIDATIONS))
        own_choice = own.load_best_model_at_end
        self.best_at_end = config.load_best_model_at_end if own_choice is None else own_choice
        lora_lr, head_lr = own.lora_lr or config.lora_lr, own.head_lr or config.head_lr
        self.groups = task_groups(source.system.model, task, config, lora_lr, head_lr)
        self.validation = source.validation(task, config.eval_examples)
        self.own_windows = [example.without_shallow_windows() for example in self.validation.encoded]

    def draw(self, step: int) -> StepBatch:
        """The task's examples of a step, some with an instruction."""
        rng = np.random.default_rng([self.config.seed, 1, step])
        source = self.source
        rate = source.system.config.data.instruction_rate
        drawn = [(row, source.inputs.draw_instruction(self.task, rng, rate)) for row in self.order.batch(step)]
        numbers = source.rank.share(range(len(drawn)))
        own = [source.example(self.task, *drawn[number]) for number in numbers]
        routes = [source.system.route_of(self.task)] * len(drawn)
        return make_step_batch(own, [], self.config.token_budget, source.system.collate, numbers, routes)

    def backward(self, batch: StepBatch, step: int, scale: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Task loss through this adapter alone."""
        system = self.source.system
        return task_backward(system, batch, system.route_of(self.task), scale)

    def validate(self) -> dict[str, float]:
        """Mean validation loss, and the task's main metric where answers need no decoding."""
        system, rows = self.source.system, self.validation
        judged = judge_examples(system, self.own_windows, rows.sources, self.config.token_budget)
        mean = sum(one.loss for one in judged) / len(judged)
        if self.by_loss:
            return {SCORE: -mean, "loss": mean}
        task = system.tasks[self.task]
        metric = task.score([one.answer for one in judged], rows.examples)[task.main_metric]
        return {SCORE: metric, "loss": mean, task.main_metric: metric}

    def members(self, step: int) -> dict[str, list[int]]:
        """The task's rows of a step."""
        return {self.task: self.order.batch(step)}
