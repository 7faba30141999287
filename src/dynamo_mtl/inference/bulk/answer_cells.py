"""Turn answers into the cells of new columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dynamo_mtl.errors import ConfigError, DynamoError
from dynamo_mtl.system import System
from dynamo_mtl.tasks.task import Task

DIGITS = 6
"""Decimal places of numbers. Rounding hides that the last bits of a sum depend on what shares its batch."""


class AnswerCells:
    """The new columns of a table, and how an answer fills them.

    If one task answers a row, they are ``task``, ``answer`` (a label, a span, a text, a number), what the answer has
    beside it, such as ``score``, ``confidence`` of the router, and ``rejected``. If several tasks answer, each has a
    column of its name, and such as ``NAME_score``. ``error`` says why there is no answer.

    Attributes:
        types: name of each new column → type of its values; ``object`` for lists and mappings.
    """

    def __init__(
        self, system: System, asked: Sequence[str] | None, probabilities: bool = False, prefix: str = ""
    ) -> None:
        """
        Args:
            system: what answers.
            asked: the tasks that all answer each row; one that is chosen for each row if None.
            probabilities: add those of labels, and of tasks where the router chooses.
            prefix: in front of the new names.
        """
        self.system, self.asked, self.prefix = system, asked, prefix
        more = {"probabilities": object} if probabilities else {}
        types: dict[str, type] = {}
        if asked is None:
            tasks = system.tasks.values()
            kinds = {task.answer_type for task in tasks}
            parts = {"score": float} | {key: kind for task in tasks for key, kind in task.answer_parts.items()}
            types = {"task": str, "answer": kinds.pop() if len(kinds) == 1 else str, **parts, **more}
            types |= {"confidence": float, "rejected": bool, **({"routing": object} if probabilities else {})}
        for task in (system.tasks[name] for name in asked or ()):
            parts = {"answer": task.answer_type, **task.answer_parts, **more}
            types |= {_named(task, part): kind for part, kind in parts.items()}
        self.types = {f"{prefix}{name}": kind for name, kind in {**types, "error": str}.items()}

    def check(self, names: Iterable[str]) -> None:
        """Refuse a table that has a column of a new name. Raises ``ConfigError``."""
        taken = next((name for name in names if name in self.types), None)
        if taken is not None:
            raise ConfigError(
                f"prefix: the table has a column '{taken}' already; give a prefix for the new columns, such as dynamo_"
            )

    def of(self, made: Mapping[str, Any] | DynamoError) -> dict[str, Any]:
        """The new cells of a row: None where there is nothing to say.

        Args:
            made: the answer as of a call, or why there is none.
        """
        found: dict[str, Any] = {}
        if isinstance(made, DynamoError):
            found["error"] = str(made)
        elif self.asked is None:
            task, routing = self.system.tasks[made["task"]], made["routing"]
            found = {**made, "answer": made[task.answer_key], "confidence": routing["confidence"],
                     "rejected": routing["rejected"], "routing": routing["probabilities"]}  # fmt: skip
        else:
            failures = {name: own["error"] for name, own in made["answers"].items() if "error" in own}
            for name in made["answers"].keys() - failures.keys():
                task, answer = self.system.tasks[name], made["answers"][name]
                parts = {**answer, "answer": answer[task.answer_key]}
                found |= {_named(task, part): value for part, value in parts.items()}
            found["error"] = "; ".join(f"{name}: {says}" for name, says in failures.items()) or None
        return {name: rounded(found.get(name.removeprefix(self.prefix))) for name in self.types}


def _named(task: Task, part: str) -> str:
    return task.name if part == "answer" else f"{task.name}_{part}"


def rounded(value: Any) -> Any:
    """A value with its numbers rounded, also those in lists and mappings."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, Mapping):
        return {key: rounded(own) for key, own in value.items()}
    return [rounded(own) for own in value] if isinstance(value, list | tuple) else value
