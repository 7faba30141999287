"""Commands for the first hour, and for when something does not work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynamo_mtl.cli.shared import app, start_logging
from dynamo_mtl.errors import EXIT_CODE, ConfigError, writable_folder


@app.command()
def init(
    files: Annotated[list[Path], typer.Argument(help="Tables, one for each task: CSV, TSV, JSON lines or Parquet.")],
    output: Annotated[Path, typer.Option(help="Configuration file to write.")] = Path("config.yaml"),
    backbone: Annotated[str, typer.Option(help="minilm, a hub id, or a folder with an encoder.")] = "minilm",
) -> None:
    """Write a commented starter configuration for your own tables."""
    start_logging(False, quiet=True)
    from dynamo_mtl.config import DynamoConfig, load_config
    from dynamo_mtl.evaluation.starter import starter_config
    from dynamo_mtl.settings import parse_yaml, validate

    if output.exists():
        raise ConfigError(f"--output: {output} is there already; name another file, or remove it")
    writable_folder(output.parent, "--output")
    text = starter_config(files, backbone)
    validate(DynamoConfig, parse_yaml(text, str(output)), str(output))
    output.write_text(text, encoding="utf-8")
    config = load_config(output)
    for name, task in config.tasks.items():
        typer.echo(f"{name}: {task.type}")
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
    from dynamo_mtl.evaluation.doctor import examine

    config = load_config(place) if place is not None and not place.is_dir() else None
    checkpoint = place if place is not None and place.is_dir() else None
    problems = 0
    for finding in examine(config, place, checkpoint):
        typer.echo(finding.line())
        problems += finding.is_well is False
    typer.echo("nothing is in the way" if not problems else f"{problems} to mend")
    if problems:
        raise SystemExit(EXIT_CODE)
