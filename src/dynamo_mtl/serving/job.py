"""A job of the engine, and how it can fail."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from dynamo_mtl.inference.requests import Pending, Prediction, Question


class Overloaded(Exception):  # noqa: N818 (what it is called)
    """There is no room; worth another try after ``retry_after`` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("the server is full")
        self.retry_after = retry_after


class Unavailable(Exception):  # noqa: N818
    """The engine is stopping, or it died."""


class DeadlineExceeded(Exception):  # noqa: N818
    """The answer was not there in time."""


class Abandoned(Exception):  # noqa: N818
    """Nobody waits for the answer any more."""


@dataclass(eq=False)
class Job:
    """An input on its way through the engine."""

    question: Question
    deadline: float
    """On the clock of ``time.monotonic``."""
    future: Future[Prediction] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    pending: Pending | None = None
    """What it has become, once it was routed."""
    is_abandoned: bool = False

    def __post_init__(self) -> None:
        """Whoever waits in an event loop and stops must not cancel what the engine is about to settle."""
        self.future.set_running_or_notify_cancel()

    def give_up(self) -> None:
        """Say that nobody waits any more; may be called from any thread, also when it is done."""
        self.is_abandoned = True

    @property
    def lost(self) -> Exception | None:
        """Why it must not be worked on any more, if so."""
        if self.is_abandoned:
            return Abandoned()
        if time.monotonic() > self.deadline:
            return DeadlineExceeded()
        return None
