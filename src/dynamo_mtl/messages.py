"""Helps to write messages: suggestions for misspelt names, and lists that stay short."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a suggestion for a misspelt name, such as ``did you mean 'rank'?``, or the list of known names."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{nearest[0]}'?" if nearest else f"known: {shortened(names, 60)}"


def shortened(names: Iterable[str], most: int = 12) -> str:
    """Join names for a sentence; only the first ``most`` are listed."""
    given = list(names)
    more = f" and {len(given) - most} more" if len(given) > most else ""
    return ", ".join(given[:most]) + more
