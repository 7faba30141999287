"""Find out what the columns of a table hold, from their values."""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_LABELS = 1000
MOST_WORDS = 6
"""Most words of a label, on average."""
TEXT_WORDS = 3
"""Fewest words of a text, on average."""
REPEATED = 0.5
"""Largest share of distinct values in a column of labels."""
SAMPLE = 2000
"""Values that are looked at closely."""
MARKS = (";", "|", ",", " / ")
"""Marks between labels in one cell, of which the first that occurs counts."""
_KEPT = 20_000
"""Most distinct values to count. A column with more does not hold labels."""


@dataclass
class Column:
    """The values of one column."""

    name: str
    rows: int = 0
    empty: int = 0
    characters: int = 0
    words: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    """How often each value occurs, without blanks around it."""
    sample: list[Any] = field(default_factory=list)
    """The first values that are not empty, as they are."""
    is_nested: bool = False
    """Whether it holds lists or objects."""

    def add(self, value: Any) -> None:
        """Take one value into account."""
        self.rows += 1
        written = "" if value is None else number_as_written(value)
        if not written or (isinstance(value, float) and math.isnan(value)):
            self.empty += 1
            return
        if len(self.sample) < SAMPLE:
            self.sample.append(value)
        self.is_nested = self.is_nested or isinstance(value, list | Mapping)
        self.characters += len(written)
        self.words += len(written.split())
        if len(self.counts) < _KEPT or written in self.counts:
            self.counts[written] += 1

    @property
    def filled(self) -> int:
        """Values that are not empty."""
        return self.rows - self.empty

    @property
    def mean_words(self) -> float:
        """Mean number of words of a value."""
        return self.words / max(1, self.filled)

    @property
    def mean_characters(self) -> float:
        """Mean number of characters of a value."""
        return self.characters / max(1, self.filled)

    def share(self, pattern: str) -> float:
        """Share of the sample that matches a pattern."""
        found = sum(re.fullmatch(pattern, str(value).strip(), re.DOTALL) is not None for value in self.sample)
        return found / max(1, len(self.sample))

    @property
    def is_address(self) -> bool:
        """Whether it holds addresses of pages or files."""
        return self.share(r"(https?://|www\.|/|[A-Za-z]:\\)\S+") > 0.8

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers."""
        return self.share(r"[-+]?\d+([.,]\d+)?([eE][-+]?\d+)?") > 0.95

    @property
    def is_score(self) -> bool:
        """Whether it holds numbers on a scale: fractions, or more different ones than classes would have."""
        fractions = self.share(r"[-+]?\d+[.,]\d*[1-9]\d*") > 0.2
        return self.is_number and (fractions or (len(self.counts) > 30 and not self.is_identifier))

    @property
    def is_identifier(self) -> bool:
        """Whether almost every row has a different value, of about one word."""
        return not self.is_nested and self.mean_words <= 1.2 and len(self.counts) >= 0.95 * self.filled > 2

    @property
    def is_date(self) -> bool:
        """Whether it holds dates or times."""
        return self.share(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?") > 0.8

    @property
    def is_label(self) -> bool:
        """Whether it holds few distinct values, which repeat."""
        spellings = len(self.folded)
        return (
            not (self.is_nested or self.is_score or self.is_address or self.is_date)
            and 2 <= spellings <= min(MOST_LABELS, max(2, REPEATED * self.filled))
            and self.mean_words <= MOST_WORDS
            and self.filled > 2
        )

    @property
    def is_text(self) -> bool:
        """Whether it holds sentences or longer texts."""
        plain = not (self.is_nested or self.is_number or self.is_address or self.is_date or self.is_identifier)
        return plain and not self.is_label and (self.mean_words >= TEXT_WORDS or self.mean_characters >= 25)

    @property
    def is_code(self) -> bool:
        """Whether most values are Python that does something: a bare name or number could be a label."""
        found = 0 if self.is_nested else sum(_is_code(str(value)) for value in self.sample[:200])
        return found >= 0.6 * len(self.sample[:200]) > 0

    @property
    def folded(self) -> dict[str, list[str]]:
        """Spellings of each value that differ in case alone, the commonest first."""
        groups: dict[str, list[str]] = {}
        for value, _ in self.counts.most_common():
            groups.setdefault(value.casefold(), []).append(value)
        return groups

    def parts(self) -> list[str]:
        """Return the single labels if values are lists of labels, such as ``a; b``; else an empty list."""
        for mark in MARKS:
            split = [[part.strip() for part in str(value).split(mark)] for value in self.sample]
            if sum(len(own) > 1 for own in split) < 0.15 * len(split):
                continue
            each = Counter(part for own in split for part in own)
            words = sum(len(part.split()) for part in each) / max(1, len(each))
            if 2 <= len(each) <= 0.2 * sum(each.values()) + 2 and words <= 3 and len(each) < len(self.counts):
                return sorted(each)
        return []


def _is_code(text: str) -> bool:
    if not re.search(r"[()=\[\]:]", text):
        return False
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return re.match(r"\s*(def|class|if|for|while|with|try|except|elif|else|return|@)\b.*", text) is not None
    return True


def read_columns(rows: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Column], int]:
    """All columns of a table, and how many rows it has."""
    columns: dict[str, Column] = {}
    count = 0
    for row in rows:
        count += 1
        for name in row:
            columns.setdefault(str(name), Column(str(name))).add(row[name])
    return columns, count


def number_as_written(value: Any) -> str:
    """Return a cell as a label: without surrounding blanks, and ``1`` for ``1.0``, which spreadsheets make of it."""
    text = str(value).strip()
    return text[:-2] if re.fullmatch(r"-?\d{1,15}\.0", text) else text
