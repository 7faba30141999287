"""The command ``dynamo``. Each verb imports what it needs when it runs, so that ``dynamo --help`` answers at once."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dynamo_mtl.errors import EXIT_CODE, ConfigError, DynamoError, writable_folder

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Many text tasks over one small frozen encoder, routed per input in a single pass.",
)
data_app = typer.Typer(no_args_is_help=True, help="Look at data before training on it.")
app.add_typer(data_app, name="data")

Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as key.sub=value.", show_default=False)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log debug details, such as routing weights.")]


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
    _start_logging(verbose)
    if phase not in ("1", "2", "3", "all"):
        raise ConfigError(f"--phase: found '{phase}', use 1, 2, 3 or all")
    from dynamo_mtl.config import load_config
    from dynamo_mtl.training.pipeline import train as run
    from dynamo_mtl.training.resume import Stopped

    phases = (1, 2, 3) if phase == "all" else (int(phase),)
    try:
        last = run(load_config(config, overrides or []), phases, resume)
    except Stopped as stopped:
        if _speaks():
            typer.echo(str(stopped), err=True)
        raise SystemExit(stopped.code) from None
    if _speaks():
        typer.echo(f"trained: {last}")


@app.command()
def evaluate(  # noqa: PLR0917 - options of a command, which users name
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="Split of the data to score on.")] = "validation",
    output: Annotated[Path | None, typer.Option(help="Result file to write.")] = None,
    systems: Annotated[
        str, typer.Option(help="Systems to score, separated by commas.")
    ] = "dynamo,oracle,single_task,trivial",
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for the report and its pictures; visualization_dir if not given.")
    ] = None,
    confirm_run_unsafe_code: Annotated[
        bool, typer.Option("--confirm-run-unsafe-code", help="Run generated code, isolated, for problems with tests.")
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="Programs that are run for each problem.")] = 1,
    verbose: Verbose = False,
) -> None:
    """Score a checkpoint and write the result file."""
    _start_logging(verbose)
    from dynamo_mtl.config import PLACES, load_config
    from dynamo_mtl.evaluation.benchmark import evaluate_checkpoint
    from dynamo_mtl.evaluation.report import print_result
    from dynamo_mtl.evaluation.result import SYSTEMS, TRAINED_APART
    from dynamo_mtl.model.checkpoint import CONFIG
    from dynamo_mtl.model.metadata import read_metadata

    chosen = systems.split(",")
    possible = [name for name in SYSTEMS if name not in TRAINED_APART]
    unknown = [name for name in chosen if name not in possible]
    if unknown:
        apart = "has a training of its own, run dynamo compare" if unknown[0] in TRAINED_APART else "is no system"
        raise ConfigError(f"--systems: '{unknown[0]}' {apart}; use {', '.join(possible)}")
    read_metadata(checkpoint)
    config = load_config(checkpoint / CONFIG, [*PLACES, *(overrides or [])])
    folder = pictures or Path(config.visualization_dir)
    writable_folder(folder, "--pictures" if pictures else "visualization_dir")
    if output is not None:
        _writable_file(output)
    result = evaluate_checkpoint(checkpoint, config, split, chosen, samples * confirm_run_unsafe_code)
    if not _speaks():
        return
    if output is not None:
        result.write(output)
    print_result(result)
    from dynamo_mtl.evaluation.page import write_report

    typer.echo(f"report: {write_report(folder, result)}")


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
    _start_logging(verbose)
    from dynamo_mtl.config import load_config
    from dynamo_mtl.evaluation.analyzer import analyze_checkpoint
    from dynamo_mtl.evaluation.compare import compare_seeds, final_checkpoint
    from dynamo_mtl.evaluation.page import write_report
    from dynamo_mtl.evaluation.report import print_result
    from dynamo_mtl.training.resume import Stopped

    settings = load_config(config, overrides or [])
    place = output or Path("results") / f"{config.stem}.json"
    _writable_file(place)
    folder = report or Path(settings.visualization_dir)
    writable_folder(folder, "--report" if report else "visualization_dir")
    try:
        result = compare_seeds(settings, settings.compare, seeds, split)
    except Stopped as stopped:
        if _speaks():
            typer.echo(str(stopped), err=True)
        raise SystemExit(stopped.code) from None
    if not _speaks():
        return
    result.write(place)
    print_result(result)
    analysis = analyze_checkpoint(final_checkpoint(settings), settings, split)
    typer.echo(f"report: {write_report(folder, result, analysis)}")


@app.command()
def analyze(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="Split of the data to route.")] = "validation",
    limit: Annotated[int, typer.Option(min=1, help="Examples of each task.")] = 500,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for the report and its pictures; visualization_dir if not given.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Look at the decisions of a checkpoint's router: what it looks at, where it goes wrong, when to trust it."""
    _start_logging(verbose)
    from dynamo_mtl.config import PLACES, load_config
    from dynamo_mtl.evaluation.analyzer import analyze_checkpoint
    from dynamo_mtl.evaluation.page import write_report
    from dynamo_mtl.model.checkpoint import CONFIG
    from dynamo_mtl.model.metadata import read_metadata

    read_metadata(checkpoint)
    config = load_config(checkpoint / CONFIG, [*PLACES, *(overrides or [])])
    folder = pictures or Path(config.visualization_dir)
    writable_folder(folder, "--pictures" if pictures else "visualization_dir")
    analysis = analyze_checkpoint(checkpoint, config, split, limit)
    if not _speaks():
        return
    for warning in analysis["warnings"]:
        typer.echo(f"warning: {warning}")
    typer.echo(f"{analysis['n']} inputs, {100 * analysis['accuracy']:.1f} % routed right")
    typer.echo(f"report: {write_report(folder, None, analysis)}")


@app.command()
def report(
    result: Annotated[Path, typer.Argument(help="Result file.")],
    html: Annotated[Path | None, typer.Option(help="Folder to write an HTML report into instead.")] = None,
) -> None:
    """Print a result file as Markdown tables, or write it as a page."""
    from dynamo_mtl.evaluation.page import write_report
    from dynamo_mtl.evaluation.report import result_markdown
    from dynamo_mtl.evaluation.result import read_result

    found = read_result(result)
    typer.echo(result_markdown(found) if html is None else f"report: {write_report(html, found)}")


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    text: Annotated[str, typer.Argument(help="What to work on; - reads standard input.")],
    context: Annotated[str | None, typer.Option(help="Passage that a question is about.")] = None,
    instruction: Annotated[str | None, typer.Option(help="What to do with the text, in words.")] = None,
    task_hint: Annotated[
        str | None, typer.Option(help="Task that must answer; the router chooses if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Verbose = False,
) -> None:
    """Route and answer one text."""
    _start_logging(verbose, quiet=True)
    from dynamo_mtl.inference.pipeline import DynamoInference

    if text == "-":
        text = sys.stdin.buffer.read().decode("utf-8", errors="replace")
    result = DynamoInference(checkpoint).predict(
        text, context=context, instruction=instruction, task_hint=task_hint, return_routing_info=True
    )
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=True))
        return
    routing: dict[str, Any] = result.pop("routing_info")
    for task, answer in result.items():
        for key, value in answer.items():
            typer.echo(f"{task}.{key}: {value}")
    doubt = ", too little: likely to be an input of no task" if routing["rejected"] else ""
    typer.echo(f"routed to {routing['predicted_task']} with {routing['confidence']:.3f}{doubt}")
    for task, probability in routing["probabilities"].items():
        typer.echo(f"  {probability:6.3f}  {task}")


@app.command()
def serve(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    overrides: Overrides = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0; a GPU if there is one.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on an address that others can reach, without a key.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Answer over HTTP, with a page to play with, until SIGTERM or Ctrl-C. Clients send the key in DYNAMO_API_KEY."""
    _start_logging(verbose)
    from dynamo_mtl.config import PLACES, load_config
    from dynamo_mtl.model.checkpoint import CONFIG
    from dynamo_mtl.model.metadata import read_metadata

    try:
        from dynamo_mtl.serving.server import serve as run
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is missing; install the server with: pip install 'dynamo-mtl[serve]'"
        ) from None
    read_metadata(checkpoint)
    config = load_config(checkpoint / CONFIG, [*PLACES, *(overrides or [])])
    raise SystemExit(run(checkpoint, config, config.serving, insecure, device))


@data_app.command("check")
def check_data(
    config: Annotated[Path, typer.Argument(help="Configuration file.")],
    overrides: Overrides = None,
    sample: Annotated[int, typer.Option(min=1, help="Examples of each split that are tokenised.")] = 2000,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    verbose: Verbose = False,
) -> None:
    """Profile the data of every task and name what is wrong with it, before any training."""
    _start_logging(verbose)
    from dynamo_mtl.config import load_config
    from dynamo_mtl.evaluation.data_check import check_data as check
    from dynamo_mtl.evaluation.data_check import profile_json, profile_rows, refuse_faults, remarks
    from dynamo_mtl.evaluation.report import print_table

    if output is not None:
        _writable_file(output)
    profile = check(load_config(config, overrides or []), sample, logging.getLogger("dynamo_mtl").info)
    print_table("Data", *profile_rows(profile))
    for remark in remarks(profile):
        typer.echo(remark)
    if output is not None:
        output.write_text(json.dumps(profile_json(profile), indent=2) + "\n", encoding="utf-8")
    refuse_faults(profile)


def _writable_file(output: Path) -> None:
    writable_folder(output.parent, "--output")
    if output.is_dir():
        raise ConfigError(f"--output: {output} is a folder; name a file")


def _start_logging(verbose: bool, quiet: bool = False) -> None:
    quiet = quiet or not _speaks()
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True
    )
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logging.getLogger("dynamo_mtl").setLevel(level)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors of the input are one sentence and exit code 2."""
    try:
        app(args=arguments, standalone_mode=True)
    except DynamoError as error:
        if not error.told:
            typer.echo(f"error: {error}", err=True)
        raise SystemExit(EXIT_CODE) from None
    finally:
        _leave_job()


def _speaks() -> bool:
    """Whether this process is the one of its job that speaks to the user; launchers number them."""
    return os.environ.get("RANK", "0") == "0"


def _leave_job() -> None:
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":  # launchers of several processes start modules
    main()
