"""Patterns of instructions: many wordings from a few lines."""

from __future__ import annotations

import itertools
import re


def expand(*patterns: str) -> tuple[str, ...]:
    """All wordings that patterns stand for, in order: ``(a|b)`` is a choice, and an empty choice leaves the place out.

    >>> expand("(Write|Say) it(:| now:)")
    ('Write it:', 'Write it now:', 'Say it:', 'Say it now:')
    """
    found: list[str] = []
    for pattern in patterns:
        pieces = re.split(r"\(([^()]*)\)", pattern)  # every second piece is the inside of a choice
        choices = [piece.split("|") if place % 2 else [piece] for place, piece in enumerate(pieces)]
        found += ["".join(chosen) for chosen in itertools.product(*choices)]
    return tuple(dict.fromkeys(found))
