"""Build the inputs to score: examples of every task, as users would send them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.inference.scoring import RoutedInput
from dynamo_mtl.router_inputs import InputKind, RouterInputs, with_others
from dynamo_mtl.system import System
from dynamo_mtl.tasks.tables import first_examples, open_task_table
from dynamo_mtl.tasks.task import Example

Examples = Mapping[str, Sequence[Example]]


def task_examples(system: System, task: str, split: str, seed: int, limit: int | None = None) -> list[Example]:
    """The first ``limit`` examples of a task's split, or all."""
    return first_examples(open_task_table(system.tasks[task], split, system.config.data, seed), limit)


def task_input(system: System, task: str, example: Example, instructions: Sequence[str] | None = None) -> TextInput:
    """An example as a user would send it: plain, or with an instruction where plain inputs cannot name the task.

    The instruction is the first of ``instructions``, or of those held out for evaluation if None.
    """
    needed = system.config.tasks[task].requires_instruction
    instruction = (instructions or system.tasks[task].evaluation_instructions)[0] if needed else None
    return TextInput(example.text, example.context, instruction, example.choices)


def make_routed_inputs(system: System, examples: Examples, seed: int) -> dict[InputKind, list[RoutedInput]]:
    """Inputs of every kind made from examples, with instructions that training never saw."""
    rng = np.random.default_rng([seed, 11])
    inputs = RouterInputs(system, "evaluation")
    kinds: dict[InputKind, list[RoutedInput]] = {kind: [] for kind in InputKind}
    for name, rows in examples.items():
        for example, another in with_others(rows, rng):
            for one in inputs.of_example(name, example, rng, another):
                kinds[one.kind].append(
                    RoutedInput(one.task, TextInput(one.text, one.context, one.instruction, one.choices))
                )
    return kinds
