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
    """A task's training and validation rows, already checked."""

    train: datasets.Dataset
    validation: datasets.Dataset


@dataclass(frozen=True)
class ValidationRows:
    """The labelled examples that validate a task: as rows, as encoded sources, and as model inputs."""

    examples: list[Example]
    sources: list[EncodedSource]
    encoded: list[EncodedExample]


@dataclass(frozen=True)
class ExampleSource:
    """Encodes training and validation examples. ``inputs`` draws only from the generator that is passed to it."""

    system: System
    tables: dict[str, TaskTables]
    rank: Rank = field(default_factory=world)
    """Rank of the process that draws. It is stored, because data-loading workers cannot ask for it."""

    @property
    def inputs(self) -> RouterInputs:
        """Builder of the inputs that the router learns from."""
        return RouterInputs(self.system)

    def example(self, task: str, row: int, instruction: str | None) -> EncodedExample:
        """A training example for a task's own adapter."""
        return self.system.encode(self.row(task, row), task, instruction).without_shallow_windows()

    def row(self, task: str, row: int) -> Example:
        """A row of a task's training table."""
        return example_at(self.tables[task].train, row)

    def validation(self, task: str, count: int) -> ValidationRows:
        """The first ``count`` validation examples, without an instruction unless the task requires one."""
        needs = self.system.config.tasks[task].requires_instruction
        instruction = self.system.tasks[task].validation_instructions[0] if needs else None
        rows = first_examples(self.tables[task].validation, count)
        sources = [self.system.source.encode(row.text, row.context, instruction) for row in rows]
        of_task, route = self.system.tasks[task], self.system.route_of(task)
        encoded = [of_task.encode(row, source, route) for row, source in zip(rows, sources, strict=True)]
        return ValidationRows(rows, sources, encoded)
