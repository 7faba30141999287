"""What is scored: examples of every task, as users would send them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.inference.scoring import RoutedInput
from dynamo_mtl.system import System
from dynamo_mtl.tasks.tables import first_examples, open_task_table
from dynamo_mtl.tasks.task import Example

Examples = Mapping[str, Sequence[Example]]


def task_examples(system: System, task: str, split: str, seed: int, limit: int | None = None) -> list[Example]:
    """The first ``limit`` examples of a task's split, or all."""
    return first_examples(open_task_table(system.tasks[task], split, system.config.data, seed), limit)


def task_input(system: System, task: str, example: Example, instructions: Sequence[str] | None = None) -> TextInput:
    """An example as a user would send it: bare, or with an instruction where bare inputs cannot name the task.

    The instruction is the first of ``instructions``; of those held out for evaluation if None.
    """
    needed = system.config.tasks[task].requires_instruction
    instruction = (instructions or system.tasks[task].evaluation_instructions)[0] if needed else None
    return TextInput(example.text, example.context, instruction)


def make_routed_inputs(system: System, examples: Examples, seed: int) -> dict[str, list[RoutedInput]]:
    """Bare, instructed and crossed inputs made from examples, with instructions that training never saw."""
    rng = np.random.default_rng([seed, 11])
    kinds: dict[str, list[RoutedInput]] = {"bare": [], "instructed": [], "crossed": []}
    for name, rows in examples.items():
        instructions = system.tasks[name].evaluation_instructions
        others = [o for o, t in system.tasks.items() if o != name and not t.needs_context]
        for example in rows:
            if not system.config.tasks[name].requires_instruction:
                kinds["bare"].append(RoutedInput(name, TextInput(example.text, example.context)))
            instruction = instructions[int(rng.integers(len(instructions)))]
            kinds["instructed"].append(RoutedInput(name, TextInput(example.text, example.context, instruction)))
            if others and not system.tasks[name].needs_context:
                other = others[int(rng.integers(len(others)))]
                asked = system.tasks[other].evaluation_instructions
                instruction = asked[int(rng.integers(len(asked)))]
                kinds["crossed"].append(RoutedInput(other, TextInput(example.text, None, instruction)))
    return kinds
