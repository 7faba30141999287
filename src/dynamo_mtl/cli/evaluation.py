"""Commands that evaluate models and check data."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from dynamo_mtl.cli.shared import (
    Checkpoint,
    Overrides,
    Verbose,
    app,
    checkpoint_config,
    data_app,
    speaks,
    start_logging,
    writable_file,
)
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.storage import writable_folder

LISTED = 10
"""Misrouted inputs that are shown in the terminal; the report has more."""


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="Split of the data to score on.")] = "validation",
    output: Annotated[Path | None, typer.Option(help="Result file to write.")] = None,
    systems: Annotated[
        str, typer.Option(help="Systems to score, separated by commas.")
    ] = "dynamo,oracle,single_task,trivial",
    shift: Annotated[
        bool, typer.Option("--shift", help="Score only routing, of inputs from elsewhere and of the split.")
    ] = False,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for the report and its pictures; visualization_dir if not given.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Score a checkpoint and write the result file."""
    start_logging(verbose)
    from dynamo_mtl.config.comparison_config import SYSTEMS, TRAINED_APART
    from dynamo_mtl.evaluation.benchmark import evaluate_checkpoint, evaluate_shift
    from dynamo_mtl.evaluation.report import print_result

    chosen = systems.split(",")
    possible = [name for name in SYSTEMS if name not in TRAINED_APART]
    unknown = [name for name in chosen if name not in possible]
    if unknown:
        apart = "has a training of its own, run dynamo compare" if unknown[0] in TRAINED_APART else "is no system"
        raise ConfigError(f"--systems: '{unknown[0]}' {apart}; use {', '.join(possible)}")
    config = checkpoint_config(checkpoint, overrides)
    folder = pictures or Path(config.visualization_dir)
    writable_folder(folder, "--pictures" if pictures else "visualization_dir")
    if output is not None:
        writable_file(output)
    if shift:
        result = evaluate_shift(checkpoint, config, split)
    else:
        result = evaluate_checkpoint(checkpoint, config, split, chosen)
    if not speaks():
        return
    if output is not None:
        result.write(output)
    print_result(result)
    from dynamo_mtl.evaluation.html_page import write_report

    typer.echo(f"report: {write_report(folder, result)}")


@app.command()
def analyze(
    checkpoint: Checkpoint,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="Split of the data to route.")] = "validation",
    limit: Annotated[int, typer.Option(min=1, help="Examples of each task.")] = 500,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for the report and its pictures; visualization_dir if not given.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Analyze the decisions of a checkpoint's router: what it looks at, where it is wrong, when to trust it."""
    start_logging(verbose)
    from dynamo_mtl.evaluation.analyzer import analyze_checkpoint
    from dynamo_mtl.evaluation.html_page import write_report

    config = checkpoint_config(checkpoint, overrides)
    folder = pictures or Path(config.visualization_dir)
    writable_folder(folder, "--pictures" if pictures else "visualization_dir")
    analysis = analyze_checkpoint(checkpoint, config, split, limit)
    if not speaks():
        return
    for warning in analysis["warnings"]:
        typer.echo(f"warning: {warning}")
    typer.echo(f"{analysis['n']} inputs, {100 * analysis['accuracy']:.1f} % routed right")
    for one in [row for row in analysis["hardest"] if row["sent_to"] != row["task"]][:LISTED]:
        asked = f" ({one['instruction']})" if one["instruction"] else ""
        text = " ".join(str(one["text"] or "").split())
        typer.echo(f"  {one['task']} sent to {one['sent_to']} ({one['confidence']:.2f}): {text:.70}{asked}")
    typer.echo(f"report: {write_report(folder, None, analysis)}")


@app.command()
def report(
    result: Annotated[Path, typer.Argument(help="Result file.")],
    html: Annotated[Path | None, typer.Option(help="Folder to write an HTML report into instead.")] = None,
) -> None:
    """Print a result file as Markdown tables, or write it as a page."""
    from dynamo_mtl.evaluation.html_page import write_report
    from dynamo_mtl.evaluation.report import result_markdown
    from dynamo_mtl.evaluation.result import read_result

    found = read_result(result)
    typer.echo(result_markdown(found) if html is None else f"report: {write_report(html, found)}")


@data_app.command("check")
def check_data(
    config: Annotated[Path, typer.Argument(help="Configuration file.")],
    overrides: Overrides = None,
    sample: Annotated[int, typer.Option(min=1, help="Examples of each split that are tokenised.")] = 2000,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    verbose: Verbose = False,
) -> None:
    """Profile the data of every task and name what is wrong with it, before any training."""
    start_logging(verbose)
    from dynamo_mtl.config import load_config
    from dynamo_mtl.evaluation.report import print_table
    from dynamo_mtl.setup.data_check import check_data as check
    from dynamo_mtl.setup.data_check import profile_json, profile_rows, refuse_faults
    from dynamo_mtl.setup.data_remarks import remarks

    if output is not None:
        writable_file(output)
    loaded = load_config(config, overrides or [])
    profile = check(loaded, sample, logging.getLogger("dynamo_mtl").info)
    print_table("Data", *profile_rows(profile))
    for remark in remarks(profile):
        typer.echo(remark)
    if output is not None:
        output.write_text(json.dumps(profile_json(profile), indent=2) + "\n", encoding="utf-8")
    refuse_faults(profile, loaded.data.bad_rows)
