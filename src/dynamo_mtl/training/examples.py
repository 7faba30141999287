"""Training examples: rows of the tables, some with an instruction, encoded; and mixtures of all tasks."""

from __future__ import annotations

from dataclasses import dataclass

import datasets
import numpy as np

from dynamo_mtl.inference.system import System
from dynamo_mtl.tasks.encoding import EncodedExample
from dynamo_mtl.tasks.tables import example_at
from dynamo_mtl.tasks.task import Example


@dataclass(frozen=True)
class TaskTables:
    """A task's validated rows."""

    train: datasets.Dataset
    validation: datasets.Dataset


@dataclass(frozen=True)
class ExampleSource:
    """Draws encoded examples. Everything random comes from the generator that is passed in."""

    system: System
    tables: dict[str, TaskTables]

    def instruction(
        self, task: str, rng: np.random.Generator, rate: float, other_than: str | None = None
    ) -> str | None:
        """One of the task's wordings for a share ``rate`` of calls; always one if the task requires it."""
        wordings = [w for w in self.system.tasks[task].instructions if w != other_than]
        required = self.system.config.tasks[task].requires_instruction
        if not wordings or (rng.random() >= rate and not required):
            return None
        return wordings[int(rng.integers(len(wordings)))]

    def example(self, task: str, row: int, rng: np.random.Generator) -> EncodedExample:
        """A training example of a task, bare or instructed."""
        return self.with_instruction(task, row, self.instruction(task, rng, self.system.config.data.instruction_rate))

    def with_instruction(self, task: str, row: int, instruction: str | None) -> EncodedExample:
        """A training example of a task with the given instruction."""
        return self.system.encode(example_at(self.tables[task].train, row), task, instruction)

    def router_input(self, task: str, row: int, instruction: str | None) -> EncodedExample:
        """An input of a task that only the router reads, with the given instruction."""
        example = example_at(self.tables[task].train, row)
        return self.system.encode_for_router(example.text, example.context, instruction, task)

    def crossed(self, task: str, example: Example, rng: np.random.Generator) -> list[EncodedExample]:
        """A text of ``task`` with the instruction of another task: it belongs to that one. Empty if there is none.

        Tasks that need a context cannot be asked for over a bare text, and a context would give its task away.
        """
        others = [n for n, t in self.system.tasks.items() if n != task and not t.needs_context]
        if not others or self.system.tasks[task].needs_context:
            return []
        other = others[int(rng.integers(len(others)))]
        return [self.system.encode_for_router(example.text, None, self.instruction(other, rng, 1.0), other)]

    def validation(self, task: str, count: int) -> list[EncodedExample]:
        """The first ``count`` validation examples, bare unless the task requires an instruction."""
        table = self.tables[task].validation
        needs = self.system.config.tasks[task].requires_instruction
        instruction = self.system.tasks[task].instructions[0] if needs else None
        return [self.system.encode(example_at(table, i), task, instruction) for i in range(min(count, len(table)))]
