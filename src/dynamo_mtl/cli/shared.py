"""Shared code of the commands: the application, common options and logging."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.messages import log_to_console
from dynamo_mtl.storage import writable_folder

if TYPE_CHECKING:
    from dynamo_mtl.config import DynamoConfig

ORDER = ("init", "doctor", "data", "train", "evaluate", "predict", "serve")
"""The commands that a user needs first, in this order. The others follow in the order of their definitions."""


class Commands(TyperGroup):
    """Lists the commands in the order in which they are needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Many text tasks over one small frozen encoder, routed per input in a single pass.",
)
data_app = typer.Typer(no_args_is_help=True, help="Look at data before training on it.")
app.add_typer(data_app, name="data")


def _show_version(wanted: bool) -> None:
    if wanted:
        versions = ", ".join(f"{name} {version(name)}" for name in ("dynamo-mtl", "torch", "transformers"))
        typer.echo(f"{versions}, Python {platform.python_version()}")
        raise typer.Exit


@app.callback()
def about(
    _: Annotated[
        bool,
        typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Many text tasks over one small frozen encoder, routed per input in a single pass."""


Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as key.sub=value.", show_default=False)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log debug details, such as routing weights.")]
Checkpoint = Annotated[Path, typer.Argument(help="Checkpoint folder.")]


def checkpoint_config(checkpoint: Path, overrides: Sequence[str] | None) -> DynamoConfig:
    """Load the configuration of a checkpoint. Settings that a foreign file must not choose are reset.

    Raises:
        CheckpointError: not a checkpoint.
        ConfigError: unusable settings.
    """
    from dynamo_mtl.checkpoint.folder import CONFIG
    from dynamo_mtl.checkpoint.metadata import read_metadata
    from dynamo_mtl.config import PLACES, load_config

    read_metadata(checkpoint)
    return load_config(checkpoint / CONFIG, [*PLACES, *(overrides or [])])


def writable_file(output: Path, option: str = "--output") -> None:
    """Check that a file can be written, before the work for its content. Raises ``ConfigError`` if it cannot."""
    writable_folder(output.parent, option)
    if output.is_dir():
        raise ConfigError(f"{option}: {output} is a folder; name a file")


def start_logging(verbose: bool, quiet: bool = False) -> None:
    """Log to standard error: progress, also details if ``verbose``, or only warnings if ``quiet``."""
    quiet = quiet or not speaks()
    log_to_console(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)


def speaks() -> bool:
    """Whether this process prints to the user. Of the processes of a job, only the one with rank 0 does."""
    return os.environ.get("RANK", "0") == "0"


def needs(error: ModuleNotFoundError, what: str, extra: str) -> ConfigError:
    """Create the error for a missing package that an extra installs."""
    return ConfigError(
        f"{error.name} is missing; install {what} in a checkout of dynamo-mtl with: pip install -e '.[{extra}]'"
    )
