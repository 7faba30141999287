"""Which tasks a call asks: some by name, those of a group, or all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.messages import did_you_mean
from dynamo_mtl.system import System

ALL, AUTO = "all", "auto"
GROUP = "group:"


@dataclass(frozen=True)
class TaskChoice:
    """Tasks that answer the same inputs."""

    names: Sequence[str]
    only_fitting: bool = False
    """Whether tasks that an input does not fit, such as those without their passage, are left out without an error."""


def groups(system: System) -> dict[str, list[str]]:
    """Group → its tasks, in the order of the model's tasks."""
    found: dict[str, list[str]] = {}
    for name, config in system.config.tasks.items():
        if config.group is not None:
            found.setdefault(config.group, []).append(name)
    return found


def choose_tasks(asked: str | Sequence[str] | None, system: System) -> TaskChoice | None:
    """The tasks that a call asks.

    Args:
        asked: ``all``; ``group:NAME``; names, in a list or separated by commas; None or ``auto`` for the router's
            choice.
        system: what answers.

    Returns:
        None if the router is to choose.

    Raises:
        ConfigError: a task or group does not exist, or nothing is named.
    """
    if asked is None or asked == AUTO:
        return None
    if asked == ALL:
        return TaskChoice(list(system.tasks), only_fitting=True)
    if isinstance(asked, str) and asked.startswith(GROUP):
        name, known = asked.removeprefix(GROUP), groups(system)
        if name not in known:
            says = did_you_mean(name, known) if known else "no task has one; see tasks.NAME.group"
            raise ConfigError(f"tasks: no group '{name:.50}'; {says}")
        return TaskChoice(known[name], only_fitting=True)
    names = [part.strip() for part in asked.split(",")] if isinstance(asked, str) else list(asked)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError("tasks: expected names of tasks, all, or group:NAME")
    for name in names:
        if name not in system.tasks:
            raise ConfigError(f"tasks: no task '{name:.50}'; {did_you_mean(name, system.tasks)}")
    return TaskChoice(list(dict.fromkeys(names)))
