"""Discovers task types, of this package and of others, and makes the tasks of a configuration."""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import pkgutil
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import entry_points

import dynamo_mtl.tasks
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.messages import did_you_mean
from dynamo_mtl.tasks.task import Task
from dynamo_mtl.tasks.task_config import TaskConfig

ENTRY_POINTS = "dynamo_mtl.tasks"
"""Group of the entry points by which other packages add task types."""

ALIASES = {"ner": "token_classification"}
"""Other names of task types."""


@functools.cache
def task_types() -> dict[str, type[Task]]:
    """Return all task types by name, from the modules of this package and from installed packages.

    A package adds one by an entry point of the group ``dynamo_mtl.tasks``.

    Raises:
        ConfigError: an entry point cannot be loaded, is not a task type, or has the name of another one.
    """
    found: dict[str, type[Task]] = {}
    for module in pkgutil.iter_modules(dynamo_mtl.tasks.__path__):
        for _, member in inspect.getmembers(
            importlib.import_module(f"dynamo_mtl.tasks.{module.name}"), inspect.isclass
        ):
            if issubclass(member, Task) and not inspect.isabstract(member):
                found[member.type] = member
    for point in entry_points(group=ENTRY_POINTS):
        try:
            member = point.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{ENTRY_POINTS}: the entry point '{point.name}' cannot be loaded ({error})") from error
        if not (inspect.isclass(member) and issubclass(member, Task)) or inspect.isabstract(member):
            raise ConfigError(f"{ENTRY_POINTS}: the entry point '{point.name}' is no task type, but {member!r:.80}")
        if member.type in found:
            raise ConfigError(
                f"{ENTRY_POINTS}: '{point.name}' brings the task type '{member.type}', which there is already"
            )
        found[member.type] = member
    return found


def task_type(name: str, key: str) -> type[Task]:
    """The task type called ``name``. Raises ``ConfigError`` naming the config ``key`` if there is none."""
    found = task_types().get(ALIASES.get(name, name))
    if found is None:
        raise ConfigError(f"{key}: no task type '{name}'; {did_you_mean(name, [*task_types(), *ALIASES])}")
    return found


def make_tasks(settings: Mapping[str, TaskConfig]) -> dict[str, Task]:
    """Make all configured tasks, in order.

    If two tasks share an instruction, both name themselves in their instructions.
    """
    tasks = {name: task_types()[own.type](name, own) for name, own in settings.items()}
    twins = {name for pair in _alike(tasks) for name in pair}
    for name in twins:
        tasks[name].name_itself()
    return tasks


def alone_in_type(settings: Mapping[str, TaskConfig]) -> list[str]:
    """Tasks that are the only one of their type and take plain inputs: what looks like their type belongs to them."""
    count = Counter(own.type for own in settings.values())
    return [name for name, own in settings.items() if count[own.type] == 1 and not own.requires_instruction]


def same_group(settings: Mapping[str, TaskConfig]) -> set[tuple[str, str]]:
    """Pairs of tasks of one group, which read the same inputs, in their order."""
    return {
        (one, other)
        for one, other in itertools.combinations(settings, 2)
        if settings[one].group is not None and settings[one].group == settings[other].group
    }


def _alike(tasks: Mapping[str, Task]) -> list[tuple[str, str]]:
    """Pairs of tasks that share an instruction."""
    worded = {name: set(task.instructions) for name, task in tasks.items()}
    return [pair for pair in itertools.combinations(tasks, 2) if worded[pair[0]] & worded[pair[1]]]


def alike_instructions(tasks: Mapping[str, Task]) -> list[str]:
    """A warning for each pair of tasks that share instructions."""
    return [
        f"{one} and {other} share instructions, which then say nothing about which is meant; give them others with "
        f"tasks.{one}.instructions, or describe them with tasks.{one}.description"
        for one, other in _alike(tasks)
    ]
