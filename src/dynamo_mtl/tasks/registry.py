"""Which task types there are, and the tasks that a configuration makes of them."""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import pkgutil
from collections.abc import Mapping
from importlib.metadata import entry_points

import dynamo_mtl.tasks
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.messages import did_you_mean
from dynamo_mtl.tasks.task import Task
from dynamo_mtl.tasks.task_config import TaskConfig

ENTRY_POINTS = "dynamo_mtl.tasks"
"""Group of the entry points by which other packages bring task types."""


@functools.cache
def task_types() -> dict[str, type[Task]]:
    """All task types: of every module of this package, and of installed packages.

    A package brings one by an entry point of the group ``dynamo_mtl.tasks``.

    Raises:
        ConfigError: what a package brings is no task type, or one that there is already.
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
    if name not in task_types():
        raise ConfigError(f"{key}: no task type '{name}'; {did_you_mean(name, task_types())}")
    return task_types()[name]


def make_tasks(settings: Mapping[str, TaskConfig]) -> dict[str, Task]:
    """Instances of all configured tasks, in order.

    Tasks that would be asked for in the same words say in their instructions which of them is meant.
    """
    tasks = {name: task_types()[own.type](name, own) for name, own in settings.items()}
    twins = {name for pair in _alike(tasks) for name in pair}
    for name in twins:
        tasks[name].name_itself()
    return tasks


def _alike(tasks: Mapping[str, Task]) -> list[tuple[str, str]]:
    """Pairs of tasks that share an instruction."""
    worded = {name: set(task.instructions) for name, task in tasks.items()}
    return [pair for pair in itertools.combinations(tasks, 2) if worded[pair[0]] & worded[pair[1]]]


def alike_instructions(tasks: Mapping[str, Task]) -> list[str]:
    """A sentence about each pair of tasks that no instruction could tell apart."""
    return [
        f"{one} and {other} share instructions, which then say nothing about which is meant; give them others with "
        f"tasks.{one}.instructions, or describe them with tasks.{one}.description"
        for one, other in _alike(tasks)
    ]
