"""Ends a run in an orderly way on SIGTERM or Ctrl-C: the run is saved first."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dynamo_mtl.distributed import all_reduce_max

logger = logging.getLogger(__name__)


class Stopped(Exception):  # noqa: N818 (no error: it was asked for)
    """The run was stopped by SIGTERM or Ctrl-C; ``code`` is its exit status."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; go on with --resume latest")
        self.code = 128 + number


class StopSignals:
    """Turns SIGTERM and Ctrl-C into an orderly end.

    In the training loop a signal is only noted, so that the loop can save the run after the current step. Elsewhere it
    ends the run at once, and a resumed run continues from its last saved state. A second signal ends the run anywhere.
    """

    def __init__(self) -> None:
        self.wanted: int | None = None
        self._deferred = False

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.wanted is not None or not self._deferred:
            raise Stopped(number)
        self.wanted = number
        logger.warning("%s: the run will be saved after this step", signal.Signals(number).name)

    def agree(self) -> None:
        """Let all processes of the job know of a signal that may have reached only one of them."""
        self.wanted = int(all_reduce_max(self.wanted or 0)) or None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals while the block runs. Has no effect outside of the main thread."""
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
        """Only note signals while the block runs, instead of stopping at once."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before
