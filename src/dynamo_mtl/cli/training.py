"""Commands that train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dynamo_mtl.cli.shared import Overrides, Verbose, app, needs, speaks, start_logging, writable_file
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.storage import writable_folder


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="Configuration file.")],
    overrides: Overrides = None,
    phase: Annotated[str, typer.Option(help="1, 2, 3 or all.")] = "all",
    resume: Annotated[
        str | None, typer.Option(help="Go on with a run that did not end: latest, or the folder of a state.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Train the three phases, or one of them from the checkpoint of the one before."""
    start_logging(verbose)
    if phase not in ("1", "2", "3", "all"):
        raise ConfigError(f"--phase: found '{phase}', use 1, 2, 3 or all")
    from dynamo_mtl.config import load_config
    from dynamo_mtl.training.run import train as run
    from dynamo_mtl.training.stop_signals import Stopped

    phases = (1, 2, 3) if phase == "all" else (int(phase),)
    try:
        last = run(load_config(config, overrides or []), phases, resume)
    except Stopped as stopped:
        if speaks():
            typer.echo(str(stopped), err=True)
        raise SystemExit(stopped.code) from None
    if speaks():
        typer.echo(f"trained: {last}")


@app.command()
def compare(
    config: Annotated[Path, typer.Argument(help="Configuration file.")],
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="Split of the data to score on.")] = "validation",
    output: Annotated[
        Path | None, typer.Option(help="Result file to write; results/CONFIG.json if not given.", show_default=False)
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for the report and its pictures; visualization_dir if not given.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds to train everything with, from training.seed on.")] = 1,
    verbose: Verbose = False,
) -> None:
    """Train the routed system and everything that it should be compared with, and score them side by side.

    What has been trained with the same settings is not trained again.
    """
    start_logging(verbose)
    from dynamo_mtl.config import load_config
    from dynamo_mtl.evaluation.analyzer import analyze_checkpoint
    from dynamo_mtl.evaluation.compare import compare_seeds, final_checkpoint
    from dynamo_mtl.evaluation.html_page import write_report
    from dynamo_mtl.evaluation.report import print_result
    from dynamo_mtl.training.stop_signals import Stopped

    settings = load_config(config, overrides or [])
    place = output or Path("results") / f"{config.stem}.json"
    writable_file(place)
    folder = report or Path(settings.visualization_dir)
    writable_folder(folder, "--report" if report else "visualization_dir")
    try:
        result = compare_seeds(settings, settings.compare, seeds, split)
    except Stopped as stopped:
        if speaks():
            typer.echo(str(stopped), err=True)
        raise SystemExit(stopped.code) from None
    if not speaks():
        return
    result.write(place)
    print_result(result)
    analysis = analyze_checkpoint(final_checkpoint(settings), settings, split)
    typer.echo(f"report: {write_report(folder, result, analysis)}")


@app.command()
def tune(
    config: Annotated[Path, typer.Argument(help="Configuration file.")],
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials of each search: one a task, and one of the router.")] = 12,
    share: Annotated[float, typer.Option(min=0.001, max=1.0, help="Share of a task's updates in a trial.")] = 0.2,
    output: Annotated[Path, typer.Option(help="Folder; an interrupted search goes on there.")] = Path("runs/tune"),
    tap: Annotated[bool, typer.Option(help="Search for the tap layer too.")] = True,
    verbose: Verbose = False,
) -> None:
    """Search for learning rates, ranks, loss weights and the tap layer; ends with a configuration to use."""
    start_logging(verbose)
    from dynamo_mtl.config import load_config

    try:
        from dynamo_mtl.training.tuning import BEST
        from dynamo_mtl.training.tuning import tune as run
    except ModuleNotFoundError as error:
        raise needs(error, "what the search needs", "tune") from None
    from dynamo_mtl.evaluation.report import print_table

    found = run(load_config(config, overrides or []), trials, share, output, tap)
    rows = [[one.search, f"{one.score:.4f}", str(one.trials), str(one.pruned), _shown(one.settings)] for one in found]
    print_table("Search", ["search", "best score", "trials", "given up", "settings"], rows)
    typer.echo(f"configuration: {output / BEST}")


def _shown(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {value:.3g}" for key, value in settings.items())
