"""Training examples: rows of the tables, encoded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import datasets
import numpy as np

from dynamo_mtl.distributed import Rank, world
from dynamo_mtl.router_inputs import RouterInputs
from dynamo_mtl.system import System
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource
from dynamo_mtl.tasks.tables import all_examples, example_at, first_examples
from dynamo_mtl.tasks.task import Example, Task

UNLABELLED_TIMES = 10
"""How often the router reads an unlabelled input, each time in other views and with other instructions."""
MOST_CALIBRATING = 1000
"""Most validation rows that calibrate the answers of a task."""


@dataclass(frozen=True)
class TaskTables:
    """A task's training and validation rows, already checked."""

    train: datasets.Dataset
    validation: datasets.Dataset
    unlabelled: list[Example] = field(default_factory=list)
    """Further inputs of the user's, without answers, from which only the router learns."""
    general: list[Example] = field(default_factory=list)
    """General texts of the task's type, from which only the router learns."""


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

    def study(self) -> ExampleSource:
        """Let every task note what training must know of all its training examples. Returns itself."""
        for task, own in self.tables.items():
            self.system.tasks[task].study(self.system.model.head(task), all_examples(own.train))
        return self

    def example(self, task: str, row: int, instruction: str | None) -> EncodedExample:
        """A training example for a task's own adapter."""
        return self.system.encode(self.row(task, row), task, instruction).without_shallow_windows()

    def row(self, task: str, row: int) -> Example:
        """A row of a task's training table; after its last row an unlabelled input, and then a general text."""
        own = self.tables[task]
        beyond = row - len(own.train)
        if beyond < 0:
            return example_at(own.train, row)
        return own.unlabelled[beyond] if beyond < len(own.unlabelled) else own.general[beyond - len(own.unlabelled)]

    def router_rows(self, task: str, most: int, rng: np.random.Generator) -> list[int]:
        """Random rows of a task for the router, as numbers for ``row``.

        They are ``most`` of its training table, and among them, evenly, each unlabelled input ``UNLABELLED_TIMES``
        times, but no more of these than of the table or than there are; and general texts, at most half as many as
        rows of the table.
        """
        own = self.tables[task]
        rows = rng.permutation(len(own.train))[:most].tolist()
        count = len(rows)
        for start, size, wanted in (
            (0, len(own.unlabelled), min(UNLABELLED_TIMES * len(own.unlabelled), max(len(own.unlabelled), count))),
            (len(own.unlabelled), len(own.general), min(UNLABELLED_TIMES * len(own.general), math.ceil(count / 2))),
        ):
            if size:
                numbers = np.resize(rng.permutation(size), wanted) + len(own.train) + start
                places = np.linspace(0, len(rows), wanted, endpoint=False).astype(int)
                rows = np.insert(np.array(rows), places, numbers).tolist()
        return rows

    def drawing(self, task: str, rng: np.random.Generator) -> Callable[[], Example]:
        """Draws random training rows of a task."""
        size = len(self.tables[task].train)
        return lambda: self.row(task, int(rng.integers(size)))

    def validation(self, task: str, count: int) -> ValidationRows:
        """The first ``count`` validation examples that choose a state, encoded without an instruction unless needed."""
        return self._encoded(task, self.choosing(task, count))

    def choosing(self, task: str, count: int) -> list[Example]:
        """The first ``count`` validation examples that choose states, of adapters and of the router."""
        rows, _ = split_validation(self.system.tasks[task], self.tables[task].validation)
        return first_examples(rows, count)

    def calibration(self, task: str) -> ValidationRows:
        """The validation examples that calibrate a task's answers, of which none chooses anything."""
        _, rows = split_validation(self.system.tasks[task], self.tables[task].validation)
        return self._encoded(task, first_examples(rows, MOST_CALIBRATING))

    def _encoded(self, task: str, rows: list[Example]) -> ValidationRows:
        needs = self.system.config.tasks[task].requires_instruction
        instruction = self.system.tasks[task].validation_instructions[0] if needs else None
        sources = [self.system.source.encode(row.text, row.context, instruction, row.choices) for row in rows]
        of_task, route = self.system.tasks[task], self.system.route_of(task)
        encoded = [of_task.encode(row, source, route) for row, source in zip(rows, sources, strict=True)]
        return ValidationRows(rows, sources, encoded)


def split_validation(task: Task, table: datasets.Dataset) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Validation rows that choose the best state of a task, and those that calibrate its answers: about half each.

    A hash of the text or passage decides, so rows of one passage stay together, and the order of the rows does not
    matter. If that leaves one half with less than a quarter, every second row is taken. A single row is in both.
    """
    if len(table) < 2:
        return table, table
    sides = [hashlib.sha256(task.split_group(one).encode()).digest()[0] % 2 for one in all_examples(table)]
    if not len(sides) <= 4 * sum(sides) <= 3 * len(sides):
        sides = [number % 2 for number in range(len(sides))]
    halves = [[row for row, side in enumerate(sides) if side == half] for half in (0, 1)]
    return table.select(halves[0]), table.select(halves[1])
