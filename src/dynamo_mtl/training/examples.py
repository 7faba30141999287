"""Training examples: rows of the tables, encoded."""

from __future__ import annotations

from dataclasses import dataclass, field

import datasets

from dynamo_mtl.distributed import Rank, world
from dynamo_mtl.router_inputs import RouterInputs
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

    @property
    def inputs(self) -> RouterInputs:
        """Builds what the router learns from."""
        return RouterInputs(self.system)

    def example(self, task: str, row: int, instruction: str | None) -> EncodedExample:
        """A training example for a task's own adapter."""
        return self.system.encode(self.row(task, row), task, instruction).without_shallow_windows()

    def row(self, task: str, row: int) -> Example:
        """A row of a task's training table."""
        return example_at(self.tables[task].train, row)

    def validation(self, task: str, count: int) -> ValidationRows:
        """The first ``count`` validation examples, bare unless the task requires an instruction."""
        needs = self.system.config.tasks[task].requires_instruction
        instruction = self.system.tasks[task].validation_instructions[0] if needs else None
        rows = first_examples(self.tables[task].validation, count)
        sources = [self.system.source.encode(row.text, row.context, instruction) for row in rows]
        of_task, route = self.system.tasks[task], self.system.route_of(task)
        encoded = [of_task.encode(row, source, route) for row, source in zip(rows, sources, strict=True)]
        return ValidationRows(rows, sources, encoded)
