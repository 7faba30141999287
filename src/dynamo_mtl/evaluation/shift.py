"""Score routing on plain inputs from elsewhere: files that the user names, and everyday inputs written by hand.

A router can tell tasks apart by how their training data happens to be written: by length, case or genre. Then it is
right on validation rows and wrong on the first input of a new user. These scores say how far that goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynamo_mtl.data.data_config import DataConfig
from dynamo_mtl.data.everyday import everyday_rows
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.inference.scoring import Routed, RoutedInput, route_inputs
from dynamo_mtl.system import System
from dynamo_mtl.tasks.registry import alone_in_type
from dynamo_mtl.tasks.task import Example
from dynamo_mtl.tasks.unlabelled import read_unlabelled, unlabelled_examples

CONFIDENT = 0.9
"""A wrong route with at least this confidence, of an input that is not rejected, is confidently wrong."""
MOST = 1000
"""Inputs of a file that are routed."""


Sets = dict[str, tuple[str, list[Example]]]
"""Name of a set → its task and inputs."""


def shift_sets(system: System, config: DataConfig) -> Sets:
    """Read the files of ``tasks.NAME.shift_files``.

    Args:
        system: the tasks.
        config: root folder of the files.

    Raises:
        ConfigError: two sets of one name, or a task of which plain inputs say nothing.
        DataError: a file that cannot be used.
    """
    found: Sets = {}
    for task in system.tasks.values():
        key = f"tasks.{task.name}.shift_files"
        if task.config.shift_files and (task.takes_choices or task.config.requires_instruction):
            why = "options decide where its inputs go" if task.takes_choices else "its inputs need an instruction"
            raise ConfigError(f"{key}: {why}, so there is nothing to measure; leave it out")
        for name, place in task.config.shift_files.items():
            if name in found:
                raise ConfigError(
                    f"{key}: task '{found[name][0]}' has a set '{name}' too; give a mapping of other names to paths"
                )
            found[name] = task.name, unlabelled_examples(task, place, "validation", config, MOST)
    return found


def score_shift(predictor: Predictor, files: Sets) -> dict[str, Any]:
    """Score the routing of inputs that no training has seen, of which only the task is known.

    Args:
        predictor: the routed system.
        files: sets of inputs.

    Returns:
        ``sets``: for each of the files its ``task`` and shares of its ``n`` inputs: ``right``, ``rejected``,
        ``right_or_rejected``, ``confident_wrong``; and ``sent_to``, how many went to which task. ``everyday``: the same
        of the built-in set, over all tasks, and in ``tasks`` for each. ``mean_right``, ``worst_right``,
        ``mean_right_or_rejected`` and ``most_confident_wrong`` over the files, if there are any.
    """
    sets = {name: _set_scores(predictor, task, rows, name) for name, (task, rows) in files.items()}
    everyday = everyday_inputs(predictor.system)
    of_tasks = {task: _set_scores(predictor, task, rows, f"everyday {task}") for task, rows in everyday.items()}
    found: dict[str, Any] = {"sets": sets, "everyday": {**_together(of_tasks), "tasks": of_tasks} if of_tasks else {}}
    if sets:
        found["mean_right"] = float(np.mean([one["right"] for one in sets.values()]))
        found["worst_right"] = min(one["right"] for one in sets.values())
        found["mean_right_or_rejected"] = float(np.mean([one["right_or_rejected"] for one in sets.values()]))
        found["most_confident_wrong"] = max(one["confident_wrong"] for one in sets.values())
    return found


def everyday_inputs(system: System) -> dict[str, list[Example]]:
    """The built-in inputs of those tasks that are the only one of their type and need no instruction."""
    found: dict[str, list[Example]] = {}
    for name in alone_in_type({name: task.config for name, task in system.tasks.items()}):
        task = system.tasks[name]
        if rows := everyday_rows(task.type):
            found[name] = [read_unlabelled(task, row, f"everyday {task.type}") for row in rows]
    return found


def _set_scores(predictor: Predictor, task: str, rows: Sequence[Example], label: str) -> dict[str, Any]:
    inputs = [RoutedInput(task, TextInput(row.text, row.context)) for row in rows]
    return {"task": task, **scores_of(route_inputs(predictor, inputs, f"routing of {label}"), predictor.system)}


def scores_of(routed: Routed, system: System) -> dict[str, Any]:
    """Shares of routed inputs that are right, rejected, either, and confidently wrong, with where they went."""
    chosen = routed.probabilities.argmax(axis=1)
    right, rejected = chosen == np.asarray(routed.truth), np.asarray(routed.rejected)
    confident = ~right & ~rejected & (routed.probabilities.max(axis=1) >= CONFIDENT)
    names = list(system.tasks)
    return {
        "right": float(right.mean()),
        "rejected": float(rejected.mean()),
        "right_or_rejected": float((right | rejected).mean()),
        "confident_wrong": float(confident.mean()),
        "sent_to": {names[number]: count for number, count in sorted(Counter(chosen.tolist()).items())},
        "n": len(chosen),
    }


def _together(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Shares over all inputs of several sets."""
    total = sum(one["n"] for one in sets.values())
    keys = ("right", "rejected", "right_or_rejected", "confident_wrong")
    return {**{key: sum(one[key] * one["n"] for one in sets.values()) / total for key in keys}, "n": total}
