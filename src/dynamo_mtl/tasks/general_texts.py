"""General texts of the five first task types: what people write in everyday life, from patterns of this project.

A router that knows a task from one data set does not know what else the task is about. These texts widen that: opinions
on anything, phrases of travel and work, descriptions of code, articles and passages of many kinds. They were written
apart from the everyday inputs that routing is judged by (``dynamo_mtl.data.everyday``).
"""

from __future__ import annotations

from importlib import resources

import numpy as np

from dynamo_mtl.data.everyday import TYPES
from dynamo_mtl.tasks.instruction_templates import draw
from dynamo_mtl.tasks.task import Example, Task

PASSAGE = " || "
"""Stands between a question and its passage."""


def general_examples(task: Task, count: int, seed: int) -> list[Example]:
    """Random distinct texts of a task's type, without answers; none for a type without patterns.

    Args:
        task: the task.
        count: how many at most. Fewer are returned where the patterns do not describe so many.
        seed: of the draw.
    """
    if task.type not in TYPES or not count:
        return []
    patterns = (
        resources.files("dynamo_mtl.tasks")
        .joinpath("general", f"{task.type}.txt")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    rng = np.random.default_rng([seed, 13])
    found: dict[tuple[str, ...], None] = {}
    for number in rng.integers(len(patterns), size=2 * count).tolist():
        found[tuple(draw(part, rng) for part in patterns[number].split(PASSAGE))] = None
        if len(found) == count:
            break
    return [Example(parts[0], parts[1] if len(parts) > 1 else None, "") for parts in found]
