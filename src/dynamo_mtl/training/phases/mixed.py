"""Batches that mix all tasks, with the extra inputs that only the router reads: crossed ones and second wordings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynamo_mtl.data.mixture import MixedOrder
from dynamo_mtl.tasks.encoding import EncodedExample
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.settings import TrainingConfig
from dynamo_mtl.training.step import StepBatch, make_step_batch


@dataclass
class MixedDraw:
    """Draws mixed batches: a pure function of the seed and the step."""

    source: ExampleSource
    config: TrainingConfig
    steps: int
    seed: int
    ranked: dict[str, list[int]] | None = None
    """Rows of each task from easy to hard; the tables' own order if None."""

    def __post_init__(self) -> None:
        tables = self.source.tables
        sizes = tuple(len(self.ranked[n]) if self.ranked else len(t.train) for n, t in tables.items())
        exponent = self.source.system.config.data.sampling_exponent
        self.names = list(tables)
        self.order = MixedOrder(sizes, self.config.batch_size, max(1, self.steps), exponent, self.seed)

    def _rows(self, step: int, share: float) -> list[tuple[str, int]]:
        """Task and row of each example of a step."""
        drawn = [(self.names[member], rank) for member, rank in self.order.batch(step, share)]
        return [(task, self.ranked[task][rank] if self.ranked else rank) for task, rank in drawn]

    def members(self, step: int, share: float = 1.0) -> dict[str, list[int]]:
        """Task → rows that a step draws."""
        found: dict[str, list[int]] = {}
        for task, row in self._rows(step, share):
            found.setdefault(task, []).append(row)
        return found

    def draw(self, step: int, share: float = 1.0) -> StepBatch:
        """The batch of a step; ``share`` of each task's easiest examples are in use."""
        rng = np.random.default_rng([self.seed, 4, step])
        examples: list[EncodedExample] = []
        extra: list[EncodedExample] = []
        twins: list[tuple[int, int]] = []
        members = self._rows(step, share)
        for task, row in members:
            example = self.source.row(task, row)
            first, second = self.source.wordings(task, rng)
            if second:
                # The same input under two wordings: the second one is read by the router only.
                twins.append((len(examples), len(members) + len(extra)))
                extra.append(self.source.router_input(task, example, second))
            extra += self.source.crossed(task, example, rng)
            examples.append(self.source.system.encode(example, task, first))
        first_position = self.source.system.first_position
        return make_step_batch([*examples, *extra], twins, self.config.token_budget, first_position)
