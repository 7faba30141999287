"""SIGTERM and Ctrl-C end a run in order: what was done is saved first."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


class Stopped(Exception):  # noqa: N818 (no error: it was asked for)
    """SIGTERM or Ctrl-C was obeyed; ``code`` is the exit status that says so."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; go on with --resume latest")
        self.code = 128 + number


class StopSignals:
    """Turns SIGTERM and Ctrl-C into an orderly end.

    Between steps of training the wish is noted, so that the loop can save first. Elsewhere it ends the run at once,
    which loses nothing: the state at the start of the stage is saved. A second Ctrl-C ends it wherever it is.
    """

    def __init__(self) -> None:
        self.wanted: int | None = None
        self._deferred = False

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.wanted is not None or not self._deferred:
            raise Stopped(number)
        self.wanted = number
        logger.warning("%s: the run will be saved after this step", signal.Signals(number).name)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Listen while the block runs. Only possible in the main thread; elsewhere nothing changes."""
        try:
            before = {n: signal.signal(n, self._receive) for n in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note a wish to stop while the block runs."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
