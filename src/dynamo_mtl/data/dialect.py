"""How a delimited table is written."""

from __future__ import annotations

from dataclasses import dataclass

SEPARATORS = (",", "\t", ";", "|")
QUOTINGS = (('"', '"'), ('"', "\\"), ("", ""))
"""Quotation mark and what stands before one inside of a cell; the last is a file that quotes nothing."""


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
