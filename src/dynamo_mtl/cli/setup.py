"""Commands for the first steps and for troubleshooting: ``init`` and ``doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynamo_mtl.cli.shared import app, start_logging
from dynamo_mtl.errors import EXIT_CODE, ConfigError
from dynamo_mtl.storage import writable_folder


@app.command()
def init(
    files: Annotated[list[Path], typer.Argument(help="Tables, one for each task: CSV, TSV, JSON lines or Parquet.")],
    output: Annotated[Path, typer.Option(help="Configuration file to write.")] = Path("config.yaml"),
    backbone: Annotated[str, typer.Option(help="minilm, a hub id, or a folder with an encoder.")] = "minilm",
    column: Annotated[
        list[str] | None, typer.Option(help="NAME.text=COLUMN or NAME.label=COLUMN, where a file leaves it open.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Of the files, such as cp1252; UTF-8 if not given.")] = None,
    separator: Annotated[str | None, typer.Option(help="Between cells; found by reading if not given.")] = None,
) -> None:
    """Write a commented starter configuration for your own tables."""
    start_logging(False, quiet=True)
    from dynamo_mtl.config import DynamoConfig, load_config
    from dynamo_mtl.config.validation import validate
    from dynamo_mtl.data.text_files import Reading
    from dynamo_mtl.setup.init import guess_tasks, starter_config
    from dynamo_mtl.strict_yaml import parse_yaml

    if output.exists():
        raise ConfigError(f"--output: {output} is there already; name another file, or remove it")
    writable_folder(output.parent, "--output")
    reading = validate(Reading, {"encoding": encoding, "separator": separator}, "init")
    guesses = guess_tasks(files, column or [], reading)
    text = starter_config(guesses, backbone, reading)
    validate(DynamoConfig, parse_yaml(text, str(output)), str(output))
    output.write_text(text, encoding="utf-8")
    load_config(output)
    for guess in guesses:
        typer.echo(f"{guess.name}: {guess.type}: {guess.why}")
        for note in guess.notes:
            typer.echo(f"  {note}")
    typer.echo(f"written: {output}; look at it, then: dynamo data check {output}")


@app.command()
def doctor(
    place: Annotated[
        Path | None, typer.Argument(help="Configuration file or checkpoint folder to look at as well.")
    ] = None,
) -> None:
    """Look at this machine, a configuration and its data, or a checkpoint, and say what to do about what is wrong."""
    start_logging(False, quiet=True)
    from dynamo_mtl.config import load_config
    from dynamo_mtl.setup.doctor import examine

    config = load_config(place) if place is not None and not place.is_dir() else None
    checkpoint = place if place is not None and place.is_dir() else None
    problems = 0
    for finding in examine(config, place, checkpoint):
        typer.echo(finding.line())
        problems += finding.is_well is False
    typer.echo("nothing is in the way" if not problems else f"{problems} to mend")
    if problems:
        raise SystemExit(EXIT_CODE)
