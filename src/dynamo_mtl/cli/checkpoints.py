"""Commands on trained models: add, remove and rename tasks, import adapters, share and export."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Annotated

import typer

from dynamo_mtl.cli.shared import (
    Checkpoint,
    Overrides,
    Verbose,
    app,
    checkpoint_config,
    needs,
    speaks,
    start_logging,
    writable_file,
)
from dynamo_mtl.errors import ConfigError

Name = Annotated[str, typer.Option(help="Name of the task.")]
Output = Annotated[
    Path | None, typer.Option(help="Folder of the new model; the checkpoint's with a suffix if not given.")
]


def beside(checkpoint: Path, suffix: str) -> Path:
    """Return a folder beside a checkpoint. Characters that do not fit a file name are replaced in the suffix.

    Such a suffix is the invalid name of a task, which is reported elsewhere.
    """
    place = checkpoint.resolve()
    return place.parent / f"{place.name}-{re.sub(r'[^A-Za-z0-9_-]', '_', suffix)}"


@app.command("add-task")
def add_task(
    checkpoint: Checkpoint,
    overrides: Overrides = None,
    *,
    name: Name,
    type_: Annotated[str, typer.Option("--type", help="Type of the task.")],
    data: Annotated[str, typer.Option(help="Folder or file with its data, or the id of a hub data set.")],
    output: Output = None,
    few_shot: Annotated[
        bool, typer.Option("--few-shot", help="For some 16 examples: the router gets a prototype of them.")
    ] = False,
    adapter: Annotated[Path | None, typer.Option(help="PEFT LoRA folder that its adapter starts from.")] = None,
    strict: Annotated[bool, typer.Option(help="Refuse an adapter of which some part cannot be taken over.")] = True,
    report: Annotated[Path | None, typer.Option(help="JSON file for routing and answers before and after.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Examples of each task in the report.")] = 1000,
    verbose: Verbose = False,
) -> None:
    """Add a task to a trained model: its adapter, its head, and a branch of the router. The others stay as they are."""
    start_logging(verbose)
    from dynamo_mtl.checkpoint.folder import CONFIG
    from dynamo_mtl.checkpoint.metadata import read_metadata
    from dynamo_mtl.config import AddedTask, extended_config
    from dynamo_mtl.lifecycle.add_task import add_task as train
    from dynamo_mtl.lifecycle.added_task_report import added_task_report, report_lines
    from dynamo_mtl.lifecycle.editing import import_for

    read_metadata(checkpoint)
    start = None if adapter is None else import_for(checkpoint, adapter, strict)
    added = AddedTask(name, type_, data, few_shot, None if start is None else start.config.model_dump())
    config = extended_config(checkpoint / CONFIG, added, overrides or [])
    place = output or beside(checkpoint, name)
    if report is not None:
        writable_file(report, "--report")
    train(checkpoint, place, config, start)
    found = added_task_report(checkpoint, place, config, limit)
    if not speaks():
        return
    if report is not None:
        report.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for line in report_lines(found):
        typer.echo(line)
    typer.echo(f"saved: {place}")


@app.command("adapt-router")
def adapt_router(
    checkpoint: Checkpoint,
    overrides: Overrides = None,
    *,
    task: Annotated[str, typer.Option(help="Task that the inputs belong to.")],
    inputs: Annotated[Path, typer.Option(help="Table of inputs, text file with one a line, or collected feedback.")],
    output: Output = None,
    verbose: Verbose = False,
) -> None:
    """Teach a trained router what else belongs to a task, in seconds. Adapters and heads stay as they are."""
    start_logging(verbose)
    from dynamo_mtl.lifecycle.adapt_router import adapt_router as adapt

    place = output or beside(checkpoint, f"{task}-adapted")
    found = adapt(checkpoint, place, checkpoint_config(checkpoint, overrides), task, inputs)
    for line in found.lines():
        typer.echo(line)
    typer.echo(f"saved: {place}")


@app.command("remove-task")
def remove_task(checkpoint: Checkpoint, *, name: Name, output: Output = None) -> None:
    """Take a task out of a trained model. The others' adapters and heads stay as they are."""
    start_logging(False)
    from dynamo_mtl.lifecycle.editing import remove_task as remove

    place = output or beside(checkpoint, f"without-{name}")
    typer.echo(f"saved: {remove(checkpoint, place, name)}")


@app.command("rename-task")
def rename_task(
    checkpoint: Checkpoint,
    *,
    name: Name,
    to: Annotated[str, typer.Option(help="Its new name.")],
    output: Output = None,
) -> None:
    """Give a task of a trained model another name."""
    start_logging(False)
    from dynamo_mtl.lifecycle.editing import rename_task as rename

    place = output or beside(checkpoint, to)
    typer.echo(f"saved: {rename(checkpoint, place, name, to)}")


@app.command("import-adapter")
def import_adapter(
    checkpoint: Checkpoint,
    adapter: Annotated[Path, typer.Argument(help="PEFT LoRA folder.")],
    *,
    task: Annotated[str, typer.Option(help="Task whose adapter it replaces.")],
    output: Output = None,
    strict: Annotated[bool, typer.Option(help="Refuse an adapter of which some part cannot be taken over.")] = True,
) -> None:
    """Replace the adapter of a task by one that PEFT trained. For a new task, use add-task with --adapter."""
    start_logging(False)
    from dynamo_mtl.lifecycle.editing import replace_adapter

    place = output or beside(checkpoint, "imported")
    typer.echo(f"saved: {replace_adapter(checkpoint, place, task, adapter, strict)}")


@app.command()
def card(
    checkpoint: Checkpoint,
    result: Annotated[Path | None, typer.Option(help="Result file of dynamo evaluate, for the figures.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model, such as owner/name.")] = None,
) -> None:
    """Write the model card of a checkpoint: tasks, figures, limits, how to use it."""
    from dynamo_mtl.checkpoint.card import UNMEASURED, write_card
    from dynamo_mtl.checkpoint.folder import CONFIG
    from dynamo_mtl.checkpoint.metadata import read_metadata
    from dynamo_mtl.checkpoint.stored_config import read_system_config
    from dynamo_mtl.evaluation.card_scores import measured
    from dynamo_mtl.evaluation.result import read_result

    figures = UNMEASURED
    if result is not None:
        figures = measured(read_result(result), read_metadata(checkpoint), read_system_config(checkpoint / CONFIG))
    typer.echo(f"card: {write_card(checkpoint, name or checkpoint.resolve().name, figures)}")


@app.command()
def push(
    checkpoint: Checkpoint,
    repository: Annotated[str, typer.Argument(help="owner/name on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private if it is new.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch.")] = None,
) -> None:
    """Upload a checkpoint and its card to the hub. The token is the one that is logged in, or HF_TOKEN."""
    from dynamo_mtl.checkpoint.hub import push as send

    typer.echo(f"pushed: {send(checkpoint, repository, private, revision)}")


@app.command()
def pull(
    repository: Annotated[str, typer.Argument(help="owner/name on the hub.")],
    output: Annotated[Path, typer.Argument(help="Folder to write it to.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
) -> None:
    """Fetch a model from the hub, verify every file, and put it into a folder."""
    from dynamo_mtl.checkpoint.hub import fetch
    from dynamo_mtl.storage import copy_folder

    typer.echo(f"pulled: {copy_folder(fetch(repository, revision), output)}")


@app.command()
def export(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    *,
    format_: Annotated[str, typer.Option("--format", help="onnx or merged.")],
    task: Annotated[str | None, typer.Option(help="With merged: the task whose adapter is merged in.")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="With onnx: also a graph whose matrices have 8 bits.")] = False,
    verbose: Verbose = False,
) -> None:
    """Write a model for other programs: one ONNX graph, or a transformers checkpoint of one task."""
    start_logging(verbose)
    if format_ not in ("onnx", "merged"):
        raise ConfigError(f"--format: found '{format_}', use onnx or merged")
    if (format_ == "merged") != (task is not None):
        raise ConfigError("--task: merged needs the task whose adapter is merged in; onnx holds all of them")
    if format_ == "merged" and int8:
        raise ConfigError("--int8: belongs to onnx; a merged checkpoint is quantized by what loads it")
    if format_ == "merged":
        from dynamo_mtl.export.merged import export_merged

        typer.echo(f"exported: {export_merged(checkpoint, output, str(task))}")
        return
    try:
        import onnxruntime
        import onnxscript
    except ModuleNotFoundError as error:
        raise needs(error, "what export needs", "export") from None
    from dynamo_mtl.export.onnx import export_onnx

    logging.getLogger(__name__).debug("onnxruntime %s, onnxscript %s", onnxruntime.__version__, onnxscript.__version__)
    typer.echo(f"exported: {export_onnx(checkpoint, output, int8)}")
