"""Commands that answer inputs: ``predict``, ``serve`` and ``mcp``."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynamo_mtl.cli.shared import Checkpoint, Overrides, Verbose, app, checkpoint_config, needs, start_logging
from dynamo_mtl.errors import ConfigError

if TYPE_CHECKING:
    from dynamo_mtl.inference.bulk.table_files import Counts

Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda:0; a GPU if there is one.")]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Listen on an address that others can reach, without a key.")
]
ROWS_FAILED = 3
"""Exit code if some rows of a table could not be answered."""


@app.command(context_settings={"ignore_unknown_options": True})  # a text may begin with "-"
def predict(
    checkpoint: Checkpoint,
    text: Annotated[str | None, typer.Argument(help="What to work on; - reads standard input.")] = None,
    *,
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
    source: Annotated[
        str | None, typer.Option("--input", help="Table to answer row by row, or a folder of them; - for JSON lines.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="File for its rows with their answers, or a folder; - for JSON lines.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="Column of the table that holds a part of the input, as text=review.")
    ] = None,
    probabilities: Annotated[bool, typer.Option(help="Add a column of probabilities.")] = False,
    prefix: Annotated[str, typer.Option(help="In front of the names of new columns.")] = "",
    reading: Annotated[
        list[str] | None, typer.Option(help="How the table is written, as encoding=cp1252, separator=; or quote='.")
    ] = None,
    ray: Annotated[
        int, typer.Option(help="Have so many actors on a Ray cluster answer; the output is a folder.", min=0)
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run over a table.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there already.")] = False,
    verbose: Verbose = False,
) -> None:
    """Route and answer one text, or every row of a table. Exit code 3 if a row could not be answered."""
    start_logging(verbose, quiet=source is None)
    if text is not None and re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", text):
        raise ConfigError(f"no such option: {text.partition('=')[0]}; see dynamo predict --help")
    if (text is None) == (source is None):
        raise ConfigError("predict: give either a text, or a table with --input")
    of_table = {"--output": output, "--column": column, "--prefix": prefix, "--probabilities": probabilities,
                "--ray": ray, "--reading": reading, "--resume": resume, "--overwrite": overwrite}  # fmt: skip
    given = next((name for name, value in of_table.items() if value), None)
    if source is None and given is not None:
        raise ConfigError(f"{given}: is for the rows of a table, which --input names")
    if source is not None:
        one = {"--context": context, "--instruction": instruction, "--choice": choice, "--json": as_json}
        given = next((name for name, value in one.items() if value), None)
        if given is not None:
            raise ConfigError(f"{given}: is for a single text; a table has columns, see --column")
        asked = {"tasks": tasks, "task_hint": task_hint, "probabilities": probabilities, "prefix": prefix,
                 "columns": _pairs(column, "--column", "text=review")}  # fmt: skip
        if ray:
            given = next((name for name, value in {"--resume": resume, "--reading": reading}.items() if value), None)
            if given is not None:
                raise ConfigError(f"{given}: Ray reads and writes files by itself; leave it out")
            _predict_on_ray(checkpoint, source, output, asked, ray, overwrite)
            return
        _predict_table(
            checkpoint, source, output, asked, _pairs(reading, "--reading", "encoding=cp1252"), resume, overwrite
        )
        return
    from dynamo_mtl.inference.api import DynamoInference
    from dynamo_mtl.inference.task_choice import AUTO

    if text == "-":
        text = sys.stdin.buffer.read().decode("utf-8", errors="replace")
    result = DynamoInference(checkpoint).predict(
        str(text), context=context, instruction=instruction, choices=choice or None, task_hint=task_hint, tasks=tasks,
        return_routing_info=True,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=True))
        return
    routing: dict[str, Any] = result.pop("routing_info")
    for task, answer in result.items():
        for key, value in answer.items():
            typer.echo(f"{task}.{key}: {_shown(value)}")
    _print_routing(routing, "routed to" if tasks in (None, AUTO) else "the router alone would choose")


def _print_routing(routing: dict[str, Any], says: str) -> None:
    from dynamo_mtl.inference.answers import doubt_in_words

    typer.echo(f"{says} {routing['predicted_task']} with {routing['confidence']:.3f}")
    if routing["rejected"]:
        typer.echo(doubt_in_words(routing))
    for task, probability in routing["probabilities"].items():
        typer.echo(f"  {probability:6.3f}  {task}")


def _pairs(given: list[str] | None, option: str, example: str) -> dict[str, str]:
    """The values of an option of the form ``key=value``."""
    pairs = [one.partition("=") for one in given or ()]
    wrong = next((one for one in pairs if not one[0] or not one[1]), None)
    if wrong is not None:
        raise ConfigError(f"{option}: '{''.join(wrong):.60}' should be like {example}")
    return {key: value for key, _, value in pairs}


def _predict_table(
    checkpoint: Path, source: str, output: str | None, asked: dict[str, Any], written: dict[str, str],
    resume: bool, overwrite: bool,
) -> None:  # fmt: skip
    """Answer a table, and leave with exit code 3 if a row could not be answered."""
    from dynamo_mtl.config.validation import validate
    from dynamo_mtl.inference.api import DynamoInference
    from dynamo_mtl.inference.bulk.input_rows import FileReading
    from dynamo_mtl.inference.bulk.table import TableRequest
    from dynamo_mtl.inference.bulk.table_files import predict_files, write_stream

    if output is None:
        raise ConfigError("--output: name a file for the answered rows, or - for JSON lines")
    if resume and "-" in (source, output):
        raise ConfigError("--resume: needs files; a stream begins where it begins")
    names = written.pop("header", None)
    reading = validate(FileReading, {**written, **({} if names is None else {"header": names.split(",")})}, "--reading")
    model, request = DynamoInference(checkpoint), TableRequest(**asked)
    with tempfile.TemporaryDirectory(prefix="dynamo-") as folder:
        place = Path(source) if source != "-" else Path(folder) / "stdin.jsonl"
        if source == "-":
            with place.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        if output == "-":
            counts = write_stream(model, place, sys.stdout.buffer, request, reading)
        else:
            counts = predict_files(
                model, place, Path(output), request, reading=reading, resume=resume, overwrite=overwrite
            )
    _leave(counts)


def _predict_on_ray(
    checkpoint: Path, source: str, output: str | None, asked: dict[str, Any], actors: int, overwrite: bool
) -> None:
    """Answer a table on a Ray cluster, and leave with exit code 3 if a row could not be answered."""
    from dynamo_mtl.inference.bulk.table import TableRequest

    try:
        from dynamo_mtl.inference.bulk.ray_data import predict_on_ray
    except ModuleNotFoundError as error:
        raise needs(error, "Ray", "ray") from None
    if output is None or "-" in (source, output):
        raise ConfigError("--input, --output: Ray reads and writes files; name a file or folder, and a folder")
    request = TableRequest(**asked)
    _leave(predict_on_ray(checkpoint, source, output, request, actors=actors, overwrite=overwrite))


def _leave(counts: Counts) -> None:
    """Say how many rows could not be answered, and leave with an exit code that says whether there were any."""
    if counts.failed:
        typer.echo(f"{counts.failed} of {counts.rows} rows could not be answered; see their column 'error'", err=True)
        raise SystemExit(ROWS_FAILED)


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
    device: Device = None,
    insecure: Insecure = False,
    verbose: Verbose = False,
) -> None:
    """Serve a model over HTTP, with a playground, until SIGTERM or Ctrl-C. Clients send the key in DYNAMO_API_KEY."""
    start_logging(verbose)

    try:
        from dynamo_mtl.serving.server import serve as run
    except ModuleNotFoundError as error:
        raise needs(error, "the server", "serve") from None
    raise SystemExit(run(checkpoint, lambda: checkpoint_config(checkpoint, overrides), insecure, device))


@app.command()
def mcp(
    checkpoint: Checkpoint,
    overrides: Overrides = None,
    http: Annotated[
        bool, typer.Option("--http", help="Listen at serving.host and serving.port, in place of standard input.")
    ] = False,
    device: Device = None,
    insecure: Insecure = False,
    verbose: Verbose = False,
) -> None:
    """Offer a model's tasks as tools of the Model Context Protocol, for programs that run agents."""
    start_logging(verbose, quiet=not http)

    try:
        from dynamo_mtl.serving.mcp_server import run_http, run_stdio
    except ModuleNotFoundError as error:
        raise needs(error, "the protocol's server", "mcp") from None
    from dynamo_mtl.inference.api import DynamoInference

    config = checkpoint_config(checkpoint, overrides)
    model = DynamoInference(checkpoint, config, device)
    if http:
        run_http(model, config.serving, insecure)
    else:
        run_stdio(model, config.serving)
