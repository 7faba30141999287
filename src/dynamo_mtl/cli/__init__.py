"""The command ``dynamo``. Each verb imports what it needs when it runs, so that ``dynamo --help`` answers at once."""

from __future__ import annotations

import io
import os
import re
import sys

import typer

from dynamo_mtl.cli import checkpoints, evaluation, inference, setup, training
from dynamo_mtl.cli.shared import app
from dynamo_mtl.errors import EXIT_CODE, DynamoError

__all__ = ["app", "checkpoints", "evaluation", "inference", "main", "setup", "training"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. For an error of the input, print one sentence and exit with code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console that cannot show a letter still shows the rest
    try:
        app(args=[_at_home(a) for a in (sys.argv[1:] if arguments is None else arguments)], standalone_mode=True)
    except DynamoError as error:
        if not error.is_reported:
            typer.echo(f"error: {error}", err=True)
        raise SystemExit(EXIT_CODE) from None
    finally:
        _leave_job()


def _at_home(argument: str) -> str:
    """Expand ``~`` in ``--output=~/x`` and ``key=~/x``. A shell does so only at the beginning of a word."""
    key, equals, value = argument.partition("=")
    plain = equals and value.startswith("~/") and re.fullmatch(r"[\w.-]+", key)
    return f"{key}={os.path.expanduser(value)}" if plain else argument


def _leave_job() -> None:
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
