"""Training examples: rows of the tables, some with an instruction, encoded; and mixtures of all tasks."""

from __future__ import annotations

from dataclasses import dataclass, field

import datasets
import numpy as np

from dynamo_mtl.distributed import Rank, world
from dynamo_mtl.system import System
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource
from dynamo_mtl.tasks.tables import example_at, first_examples
from dynamo_mtl.tasks.task import Example


@dataclass(frozen=True)
class TaskTables:
    """A task's validated rows."""

    train: datasets.Dataset
    validation: datasets.Dataset


@dataclass(frozen=True)
class ValidationRows:
    """Labelled examples that a task is judged on, as rows, as what is read of them, and as what the model gets."""

    examples: list[Example]
    sources: list[EncodedSource]
    encoded: list[EncodedExample]


@dataclass(frozen=True)
class ExampleSource:
    """Draws encoded examples. Everything random comes from the generator that is passed in."""

    system: System
    tables: dict[str, TaskTables]
    rank: Rank = field(default_factory=world)
    """Of the process that draws; kept here, since the workers that it starts cannot find out."""

    def instruction(
        self, task: str, rng: np.random.Generator, rate: float, other_than: str | None = None, validation: bool = False
    ) -> str | None:
        """One of the task's instructions for a share ``rate`` of calls; always one if the task requires it.

        Args:
            task: whose instructions.
            rng: that draws.
            rate: share of calls, in [0, 1].
            other_than: an instruction that must not be drawn.
            validation: draw from the instructions that no training input has.
        """
        of_task = self.system.tasks[task]
        instructions = [
            w for w in (of_task.validation_instructions if validation else of_task.instructions) if w != other_than
        ]
        required = self.system.config.tasks[task].requires_instruction
        if not instructions or (rng.random() >= rate and not required):
            return None
        return instructions[int(rng.integers(len(instructions)))]

    def two_instructions(self, task: str, rng: np.random.Generator) -> tuple[str | None, str | None]:
        """The instruction of a training input, and another one that means the same where there is one."""
        first = self.instruction(task, rng, self.system.config.data.instruction_rate)
        return first, self.instruction(task, rng, 1.0, other_than=first) if first else None

    def example(self, task: str, row: int, instruction: str | None) -> EncodedExample:
        """A training example for a task's own adapter."""
        return self.system.encode(self.row(task, row), task, instruction).without_shallow_windows()

    def row(self, task: str, row: int) -> Example:
        """A row of a task's training table."""
        return example_at(self.tables[task].train, row)

    def router_input(self, task: str, example: Example, instruction: str | None) -> EncodedExample:
        """An input of a task that only the router reads, with the given instruction."""
        return self.system.encode_for_router(example.text, example.context, instruction, task)

    def crossing(self, task: str, rng: np.random.Generator, validation: bool = False) -> tuple[str, str | None] | None:
        """For a share of calls, another task to which a text of ``task`` then belongs, with an instruction of it.

        Tasks that need a context cannot be asked for over a bare text, and a context would give its task away.
        """
        others = [n for n, t in self.system.tasks.items() if n != task and not t.needs_context]
        if not others or self.system.tasks[task].needs_context or rng.random() >= self.system.config.data.crossed_rate:
            return None
        other = others[int(rng.integers(len(others)))]
        return other, self.instruction(other, rng, 1.0, validation=validation)

    def validation(self, task: str, count: int) -> ValidationRows:
        """The first ``count`` validation examples, bare unless the task requires an instruction."""
        needs = self.system.config.tasks[task].requires_instruction
        instruction = self.system.tasks[task].validation_instructions[0] if needs else None
        rows = first_examples(self.tables[task].validation, count)
        sources = [self.system.source.encode(row.text, row.context, instruction) for row in rows]
        of_task, route = self.system.tasks[task], self.system.route_of(task)
        encoded = [of_task.encode(row, source, route) for row, source in zip(rows, sources, strict=True)]
        return ValidationRows(rows, sources, encoded)
