"""Builds the inputs that a router is trained and evaluated on.

A text becomes an input in four ways:

- plain: as it is
- instructed: with an instruction of its own task
- conflicting: with an instruction of another task, which should win over what the text looks like
- viewed: in another length, spelling or surrounding, see ``router_views``
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np

from dynamo_mtl.router_views import view_of
from dynamo_mtl.system import System
from dynamo_mtl.tasks.encoding import EncodedExample
from dynamo_mtl.tasks.task import Example


class InputKind(StrEnum):
    """How a text becomes an input. The values are keys of result files."""

    PLAIN = "bare"
    INSTRUCTED = "instructed"
    CONFLICTING = "crossed"
    VIEWED = "viewed"

    @property
    def shown(self) -> str:
        """The name in tables."""
        return self.name.lower()


@dataclass(frozen=True)
class RouterInput:
    """A text with its context and instruction, and the task that should answer."""

    kind: InputKind
    task: str
    """The task that should answer."""
    origin: str
    """The task whose text it is."""
    text: str
    context: str | None
    instruction: str | None
    choices: list[str] | None = None
    """Options, which the router does not read."""


@dataclass(frozen=True)
class RouterInputs:
    """Builds inputs from examples. Everything random comes from the generator that is passed in."""

    system: System
    instructions: Literal["training", "validation", "evaluation"] = "training"
    """Which of a task's instructions are used; the three sets share none."""

    def draw_instruction(
        self, task: str, rng: np.random.Generator, rate: float | None = None, other_than: str | None = None
    ) -> str | None:
        """Draw one of a task's instructions.

        Args:
            task: the task.
            rng: random generator.
            rate: probability of an instruction, in [0, 1]; 1 if None or if the task requires one.
            other_than: an instruction that must not be drawn.

        Returns:
            The instruction; None if the task has no other one, or if none was to be drawn.
        """
        of_task = self.system.tasks[task]
        known = {
            "training": of_task.instructions,
            "validation": of_task.validation_instructions,
            "evaluation": of_task.evaluation_instructions,
        }[self.instructions]
        chosen = known if other_than is None else [one for one in known if one != other_than]
        is_wanted = rate is None or rng.random() < rate or self.requires_instruction(task)
        return chosen[int(rng.integers(len(chosen)))] if chosen and is_wanted else None

    def draw_two_instructions(self, task: str, rng: np.random.Generator) -> tuple[str | None, str | None]:
        """Draw an instruction at the configured rate, and with it another one of the task, if there is one."""
        first = self.draw_instruction(task, rng, self.system.config.data.instruction_rate)
        return first, self.draw_instruction(task, rng, other_than=first) if first else None

    def draw_conflict(
        self, task: str, rng: np.random.Generator, rate: float | None = None
    ) -> tuple[str, str | None] | None:
        """Draw another task for a text of ``task``, and one of its instructions.

        Tasks that need a context or options are left out: they cannot work on a text without, and a text with a context
        would give its own task away.

        Args:
            task: the task that the text comes from.
            rng: random generator.
            rate: probability of a conflict, in [0, 1]; 1 if None.

        Returns:
            The task and the instruction; None if there is no such task, or if none was to be drawn.
        """
        others = [
            name
            for name, one in self.system.tasks.items()
            if name != task and not (one.needs_context or one.takes_choices)
        ]
        if not others or self.system.tasks[task].needs_context or (rate is not None and rng.random() >= rate):
            return None
        other = others[int(rng.integers(len(others)))]
        return other, self.draw_instruction(other, rng)

    def requires_instruction(self, task: str) -> bool:
        """Whether a task has no plain inputs, because only an instruction tells that it is meant."""
        return self.system.config.tasks[task].requires_instruction

    def plain(self, task: str, example: Example) -> RouterInput | None:
        """The example as it is; None where the task requires an instruction."""
        if self.requires_instruction(task):
            return None
        return RouterInput(InputKind.PLAIN, task, task, example.text, example.context, None, example.choices)

    def instructed(self, task: str, example: Example, instruction: str | None) -> RouterInput:
        """The example with an instruction of its task."""
        return RouterInput(
            InputKind.INSTRUCTED, task, task, example.text, example.context, instruction, example.choices
        )

    def conflicting(
        self, task: str, example: Example, rng: np.random.Generator, rate: float | None = None
    ) -> RouterInput | None:
        """The example with an instruction of another task, which should answer; see ``draw_conflict``."""
        conflict = self.draw_conflict(task, rng, rate)
        if conflict is None:
            return None
        return RouterInput(InputKind.CONFLICTING, conflict[0], task, example.text, example.context, conflict[1])

    def viewed(
        self, task: str, example: Example, rng: np.random.Generator, another: Callable[[], Example]
    ) -> RouterInput | None:
        """The example changed by random views of ``data.views``, at the rate ``data.view_rate``.

        It has an instruction only if its task requires one. ``another`` draws further examples of the task.
        """
        data = self.system.config.data
        if not data.views or rng.random() >= data.view_rate:
            return None
        changed = view_of(example, data.views, rng, another, self.system.tasks[task].least_words)
        if changed is None:
            return None
        instruction = self.draw_instruction(task, rng) if self.requires_instruction(task) else None
        return RouterInput(InputKind.VIEWED, task, task, changed.text, changed.context, instruction, example.choices)

    def of_example(
        self,
        task: str,
        example: Example,
        rng: np.random.Generator,
        another: Callable[[], Example],
        conflicting_rate: float | None = None,
    ) -> Iterator[RouterInput]:
        """Yield all inputs of an example: plain, instructed, conflicting and viewed, as far as there are such.

        Args:
            task: whose example it is.
            example: the text.
            rng: random generator.
            another: draws another example of the task.
            conflicting_rate: as for ``draw_conflict``.
        """
        plain = self.plain(task, example)
        if plain is not None:
            yield plain
        yield self.instructed(task, example, self.draw_instruction(task, rng))
        conflicting = self.conflicting(task, example, rng, conflicting_rate)
        if conflicting is not None:
            yield conflicting
        viewed = self.viewed(task, example, rng.spawn(1)[0], another)
        if viewed is not None:
            yield viewed

    def encode(self, given: RouterInput) -> EncodedExample:
        """Encode an input for the router; its route is the task that should answer."""
        return self.system.encode_for_router(given.text, given.context, given.instruction, given.task)


def with_others(rows: Sequence[Example], rng: np.random.Generator) -> Iterator[tuple[Example, Callable[[], Example]]]:
    """Yield each of some rows of a task with a function that draws from all of them."""
    own = rng.spawn(1)[0]
    for example in rows:
        yield example, lambda: rows[int(own.integers(len(rows)))]
