"""Draws batches that mix all tasks, with extra inputs for the router: conflicting inputs and second instructions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynamo_mtl.config.training_config import TrainingConfig
from dynamo_mtl.data.mixture import MixedOrder
from dynamo_mtl.tasks.encoding import EncodedExample
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.step import StepBatch, make_step_batch


@dataclass(frozen=True)
class Planned:
    """An example of a batch that is not encoded yet. Each process encodes only its share."""

    task: str
    row: int
    instruction: str | None
    belongs: str
    """The task that the router should choose. For a conflicting input, it is the instruction's, not the row's."""
    answered: bool = True
    """Whether the model answers it; if not, only the router reads it."""


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
        """Draw the batch of a step from the easiest ``share`` of each task's examples."""
        rng = np.random.default_rng([self.seed, 4, step])
        planned: list[Planned] = []
        extra: list[Planned] = []
        twins: list[tuple[int, int]] = []
        members, inputs = self._rows(step, share), self.source.inputs
        for task, row in members:
            first, second = inputs.draw_two_instructions(task, rng)
            if second:
                # The same input under two instructions: the second one is read by the router only.
                twins.append((len(planned), len(members) + len(extra)))
                extra.append(Planned(task, row, second, task, answered=False))
            conflict = inputs.draw_conflict(task, rng, self.source.system.config.data.crossed_rate)
            if conflict is not None:
                extra.append(Planned(task, row, conflict[1], conflict[0], answered=False))
            planned.append(Planned(task, row, first, task))
        planned += extra
        system = self.source.system
        numbers = self.source.rank.share(range(len(planned)))
        own = [self._encode(planned[number]) for number in numbers]
        routes = [system.route_of(p.belongs) for p in planned]
        return make_step_batch(own, twins, self.config.token_budget, system.collate, numbers, routes)

    def _encode(self, planned: Planned) -> EncodedExample:
        example = self.source.row(planned.task, planned.row)
        if planned.answered:
            return self.source.system.encode(example, planned.task, planned.instruction)
        system = self.source.system
        return system.encode_for_router(example.text, example.context, planned.instruction, planned.belongs)
