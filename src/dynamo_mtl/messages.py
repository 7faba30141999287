"""Helps to write messages: where they go, suggestions for misspelt names, and lists that stay short."""

import difflib
import logging
import sys
from collections.abc import Iterable


def log_to_console(level: int) -> None:
    """Log to standard error from ``level`` on; of other packages only warnings."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(asctime)s  %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    logging.getLogger("dynamo_mtl").setLevel(level)
    for library in ("torchao", "torch.utils._pytree"):  # they warn of kernels for other hardware
        logging.getLogger(library).setLevel(logging.ERROR)


def show_progress() -> None:
    """Log progress to standard error, in a terminal or a notebook, unless the program has set up its own logging."""
    if not logging.getLogger().handlers:
        log_to_console(logging.INFO)


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


def clock(seconds: float) -> str:
    """Return a time as minutes and seconds, such as ``3:07``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
