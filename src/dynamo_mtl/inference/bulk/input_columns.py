"""Find the columns of a table that hold inputs, and turn its rows into inputs."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynamo_mtl.errors import ConfigError, InputError
from dynamo_mtl.inference.request_reader import CONTEXT_KEYS, TEXT_KEYS
from dynamo_mtl.messages import did_you_mean, shortened
from dynamo_mtl.system import System

PARTS = ("text", "context", "instruction", "choices", "task_hint")
"""Parts of an input that a column can hold."""


class InputColumns:
    """Which column holds which part of an input."""

    def __init__(
        self,
        names: Sequence[str],
        chosen: Mapping[str, str],
        system: System,
        asked: Sequence[str],
        rows: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Find the columns.

        Args:
            names: all columns of the table.
            chosen: part → its column, for those that the user has named.
            system: what answers. A column may have the name that it has in the data of a task.
            asked: the tasks that may answer.
            rows: some rows of the table. Rows with ``text`` and others with ``question`` may be mixed.

        Raises:
            ConfigError: a column does not exist, or several could be the same part, or none is the text.
        """
        for part, column in chosen.items():
            if part not in PARTS:
                raise ConfigError(f"columns: no part '{part}' of an input; known: {', '.join(PARTS)}")
            if str(column) not in names:
                raise ConfigError(f"columns: the table has no column '{column}'; {did_you_mean(str(column), names)}")
        self.of: dict[str, str] = {part: str(column) for part, column in chosen.items()}
        self._question: str | None = None
        """Column of the texts of those rows that have none in ``self.of["text"]``."""
        if "text" not in self.of:
            both = [name for key in TEXT_KEYS for name in names if name.strip().casefold() == key]
            if len(both) == 2 and not any(all(not is_missing(row.get(name)) for name in both) for row in rows):
                self.of["text"], self._question = both
        for part in PARTS:
            if part not in self.of and (found := self._found(part, names, system, asked)) is not None:
                self.of[part] = found
        if "text" not in self.of:
            if len(names) != 1:
                raise ConfigError(
                    f"columns: none of {shortened(names) or 'no columns'} is known to hold the texts; name it with "
                    "text=COLUMN"
                )
            self.of["text"] = names[0]

    def _found(self, part: str, names: Sequence[str], system: System, asked: Sequence[str]) -> str | None:
        """The only column that has a name of a part; None if there is none."""
        if part == "choices" and not any(system.tasks[name].takes_choices for name in asked):
            return None
        known = [*{"text": TEXT_KEYS, "context": CONTEXT_KEYS}.get(part, (part,))]
        configured: list[str] = []
        for name in asked:
            task = system.tasks[name]
            for column, own in task.input_columns.items():
                if own == part:
                    is_said = column in task.config.columns
                    (configured if is_said else known).extend(task.names_of(column))
        for candidates in (configured, known):
            folded = {candidate.casefold() for candidate in candidates}
            taken = set(self.of.values())
            found = [name for name in names if name.strip().casefold() in folded and name not in taken]
            if len(found) > 1:
                raise ConfigError(
                    f"columns: {' and '.join(found)} could each be the {part}; say which with {part}=COLUMN"
                )
            if found:
                return found[0]
        return None

    def input_of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The input of a row.

        Raises:
            InputError: a cell is empty or of another type.
        """
        given: dict[str, Any] = {}
        for part, column in self.of.items():
            value = row.get(column)
            if part == "text" and self._question is not None and is_missing(value):
                value = row.get(self._question)
            if is_missing(value):
                if part == "text":
                    raise InputError(f"column '{column}' is empty")
                continue
            if part == "choices":
                given[part] = _choices(value, column)
            elif isinstance(value, str):
                given[part] = value
            else:
                raise InputError(f"column '{column}' should be text, found {type(value).__name__}")
        return given


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: null, an empty text, or what data frames use for both."""
    if isinstance(value, str):
        return not value
    is_nan = isinstance(value, float) and math.isnan(value)
    return value is None or is_nan or type(value).__name__ in ("NAType", "NaTType")


def _choices(value: Any, column: str) -> list[str]:
    """The options in a cell: a list, or one that is written as JSON or as Python shows it."""
    if isinstance(value, str):
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(value)
                break
            except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                continue
    found = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
        raise InputError(f'column \'{column}\' should be a list of texts, such as ["yes", "no"]')
    return list(found)
