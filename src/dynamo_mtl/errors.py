"""Errors that a user can cause, each carrying one clear sentence.

DynamoError
├── ConfigError        a key, a value or a combination of values in the configuration
├── DataError          a data file, a row or a split
├── BackboneError      the pretrained encoder or its tokenizer
├── CheckpointError    a saved model
├── DivergedError      a loss or gradient that is not finite
├── InputError         an input that the task cannot answer as it is
├── RejectedError      an input of no task
├── MemoryShortage     an update that does not fit into memory
└── ProcessError       another process of the job is gone

The command line prints the sentence and leaves with ``EXIT_CODE``; everything else is a bug and keeps its traceback.
"""

EXIT_CODE = 2


class DynamoError(Exception):
    """Base of all errors that are caused by the input and not by a bug."""

    is_reported = False
    """Whether another process of the job reports it to the user."""

    def __init__(self, message: str) -> None:
        """Store the message. Text that it quotes from a file stays on one line and cannot control a terminal."""
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class ConfigError(DynamoError):
    """The configuration is wrong: raised before any model is loaded."""


class DataError(DynamoError):
    """A data file or one of its rows is wrong: the message names file and line."""

    def __init__(self, message: str, kind: str = "unreadable") -> None:
        """
        Args:
            message: the whole sentence.
            kind: the kind of fault; bad rows are counted by it.
        """
        super().__init__(message)
        self.kind = kind


class BackboneError(DynamoError):
    """The pretrained encoder could not be found or does not fit."""


class CheckpointError(DynamoError):
    """A checkpoint folder is missing, incomplete or was made for something else."""


class DivergedError(DynamoError):
    """Training met a loss or gradient that is not finite; what was saved before is intact."""


class InputError(DynamoError):
    """An input that its task cannot answer as it is, such as a question without a passage."""


class RejectedError(DynamoError):
    """An input that the router rejects, if rejected inputs are to be refused."""


class MemoryShortage(DynamoError):  # noqa: N818 (what it is called)
    """Not even one example at a time fits into memory."""


class ProcessError(DynamoError):
    """Another process of the job ended or cannot be reached."""
