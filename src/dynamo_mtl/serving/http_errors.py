"""Error responses: an HTTP status, an error type for programs, and a sentence for people."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from dynamo_mtl.errors import InputError, RejectedError
from dynamo_mtl.serving.job import Abandoned, DeadlineExceeded, Overloaded, Unavailable


class RequestError(Exception):
    """A request that cannot be answered as it is."""

    def __init__(self, status: int, error_type: str, message: str, headers: dict[str, str] | None = None) -> None:
        """
        Args:
            status: of HTTP.
            error_type: a word for programs.
            message: a sentence for people.
            headers: further ones of the response.
        """
        super().__init__(message)
        self.status, self.error_type, self.message, self.headers = status, error_type, message, headers or {}


class Failure(BaseModel):
    """The body of every error response."""

    error: str = Field(description="A sentence for people. It never repeats what was sent.")
    error_type: Literal[
        "authentication", "not_found", "method", "media_type", "too_large", "too_slow", "json", "validation",
        "overloaded", "unavailable", "deadline", "rejected", "internal",
    ]  # fmt: skip
    """A word for programs."""
    request_id: str


CLIENT_GONE = 499
"""Status in the log and the metrics. It is never sent, because the client has gone."""


def as_failure(reason: BaseException) -> RequestError:
    """Convert an exception to the error that the client receives."""
    match reason:
        case RequestError():
            found = reason
        case Overloaded():
            says = "the server is full; try again after the time in Retry-After"
            found = RequestError(429, "overloaded", says, {"Retry-After": str(reason.retry_after)})
        case Unavailable():
            found = RequestError(503, "unavailable", str(reason), {"Retry-After": "5"})
        case DeadlineExceeded():
            found = RequestError(504, "deadline", "the answer was not there in time; ask for less, or try again later")
        case InputError():
            found = RequestError(422, "validation", str(reason))
        case RejectedError():
            found = RequestError(422, "rejected", str(reason))
        case Abandoned():
            found = RequestError(CLIENT_GONE, "unavailable", "the client went away")
        case _:
            says = "this input could not be answered; the log has more under the request's id"
            found = RequestError(500, "internal", says)
    return found
