"""Guesses what a user's own table is: each task type looks at a ``Table`` and returns a ``Guess`` if it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynamo_mtl.data.columns import Column
from dynamo_mtl.errors import ConfigError


@dataclass
class Guess:
    """The task that a file seems to hold, and why."""

    name: str
    type: str
    path: str
    rows: int
    why: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the task, apart from its type."""
    notes: list[str] = field(default_factory=list)
    """What else a user should know: other possible columns, merged values, rows that are left out."""
    missing: int = 0
    """Rows without a label."""
    held_out: bool = True
    """Whether validation data must be held out of the file."""


@dataclass(frozen=True)
class Table:
    """A file's columns, and what the user said of them."""

    path: Path
    columns: Mapping[str, Column]
    rows: int
    chosen: Mapping[str, str]
    """Our column → the file's."""

    def named(self, names: Sequence[str]) -> str | None:
        """The only column with one of ``names``, ignoring case; None if there are none or several."""
        found = [name for name in self.columns if name.strip().casefold() in names]
        return found[0] if len(found) == 1 else None

    def ask(self, question: str) -> ConfigError:
        """An error to raise, with a question that only the user can answer."""
        return ConfigError(f"{self.path}: {question}")
