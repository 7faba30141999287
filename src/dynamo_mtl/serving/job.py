"""Jobs of the engine, and the errors that they can end with."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import Pending, Prediction, Question


class Overloaded(Exception):  # noqa: N818 (what it is called)
    """The server is full. Clients may retry after ``retry_after`` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("the server is full")
        self.retry_after = retry_after


class Unavailable(Exception):  # noqa: N818
    """The engine is stopping, or it died."""


class DeadlineExceeded(Exception):  # noqa: N818
    """The answer was not ready before the deadline."""


class Abandoned(Exception):  # noqa: N818
    """The client no longer waits for the answer."""


@dataclass(eq=False)
class Job:
    """An input on its way through the engine."""

    question: Question
    predictor: Predictor
    """Of the model that the input was encoded for."""
    deadline: float
    """On the clock of ``time.monotonic``."""
    future: Future[Prediction] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    pending: Pending | None = None
    """The routed input, once it has been routed."""
    is_abandoned: bool = False

    def __post_init__(self) -> None:
        """Mark the future as running, so that a caller who stops waiting cannot cancel it."""
        self.future.set_running_or_notify_cancel()

    def give_up(self) -> None:
        """Mark the job as abandoned. May be called from any thread, even after the job has ended."""
        self.is_abandoned = True

    @property
    def lost(self) -> Exception | None:
        """Why the job must be dropped: it was abandoned, or its deadline has passed. None otherwise."""
        if self.is_abandoned:
            return Abandoned()
        if time.monotonic() > self.deadline:
            return DeadlineExceeded()
        return None
