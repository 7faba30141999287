"""How a delimited table is written."""

from __future__ import annotations

from dataclasses import dataclass

SEPARATORS = (",", "\t", ";", "|")
QUOTINGS = (('"', '"'), ('"', "\\"), ("", ""))
"""Quotation mark, and the character that escapes it in a cell. The last entry is for files that quote nothing."""


@dataclass(frozen=True)
class Dialect:
    """One way to read a file."""

    separator: str
    quote: str
    escape: str
    skip: int
    """Lines before the one that names the columns."""
    names: tuple[str, ...]
    has_header: bool
