"""Commands that answer inputs: ``predict`` and ``serve``."""

from __future__ import annotations

import json
import re
import sys
from typing import Annotated, Any

import typer

from dynamo_mtl.cli.shared import Checkpoint, Overrides, Verbose, app, checkpoint_config, needs, start_logging
from dynamo_mtl.errors import ConfigError


@app.command(context_settings={"ignore_unknown_options": True})  # a text may begin with "-"
def predict(
    checkpoint: Checkpoint,
    text: Annotated[str, typer.Argument(help="What to work on; - reads standard input.")],
    context: Annotated[str | None, typer.Option(help="Passage that a question is about.")] = None,
    instruction: Annotated[str | None, typer.Option(help="What to do with the text, in words.")] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="One of the options to choose from; give it for each option.")
    ] = None,
    task_hint: Annotated[
        str | None, typer.Option(help="Task that must answer; the router chooses if not given.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks that must all answer: a,b or group:NAME or all; auto for the router.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Verbose = False,
) -> None:
    """Route and answer one text."""
    start_logging(verbose, quiet=True)
    if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", text):
        raise ConfigError(f"no such option: {text.partition('=')[0]}; see dynamo predict --help")
    from dynamo_mtl.inference.api import DynamoInference

    if text == "-":
        text = sys.stdin.buffer.read().decode("utf-8", errors="replace")
    result = DynamoInference(checkpoint).predict(
        text, context=context, instruction=instruction, choices=choice or None, task_hint=task_hint, tasks=tasks,
        return_routing_info=True,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=True))
        return
    routing: dict[str, Any] = result.pop("routing_info")
    for task, answer in result.items():
        for key, value in answer.items():
            typer.echo(f"{task}.{key}: {_shown(value)}")
    doubt = ", too little: likely to be an input of no task" if routing["rejected"] else ""
    says = "routed to" if tasks is None else "the router alone would choose"
    typer.echo(f"{says} {routing['predicted_task']} with {routing['confidence']:.3f}{doubt}")
    for task, probability in routing["probabilities"].items():
        typer.echo(f"  {probability:6.3f}  {task}")


def _shown(value: Any) -> str:
    """A value of an answer on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(own)}" for key, own in value.items())
    if isinstance(value, list):
        return "; ".join(map(_shown, value))
    return f"{value:.3f}" if isinstance(value, float) else str(value)


@app.command()
def serve(
    checkpoint: Checkpoint,
    overrides: Overrides = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0; a GPU if there is one.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on an address that others can reach, without a key.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Serve a model over HTTP, with a playground, until SIGTERM or Ctrl-C. Clients send the key in DYNAMO_API_KEY."""
    start_logging(verbose)

    try:
        from dynamo_mtl.serving.server import serve as run
    except ModuleNotFoundError as error:
        raise needs(error, "the server", "serve") from None
    config = checkpoint_config(checkpoint, overrides)
    raise SystemExit(run(checkpoint, config, config.serving, insecure, device))
