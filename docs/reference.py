"""Writes docs/configuration.md and docs/cli.md from the settings and the command themselves: make reference."""

import ast
import html
import inspect
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from dynamo_mtl.config import DynamoConfig
from dynamo_mtl.model.adapter import LoraConfig
from dynamo_mtl.tasks.registry import task_types
from dynamo_mtl.tasks.task_config import TaskTraining

DOCS = Path(__file__).parent
HEAD = """# Configuration

Every setting, from the models that read it; written by `make reference`. A file may begin with `extends: other.yaml`. On the
command line any setting is `section.key=value`. Unknown keys are errors that name the nearest one.
"""


def said_of_fields(model: type[BaseModel]) -> dict[str, str]:
    """Field → the docstring under it, those of base classes included."""
    said: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if base in (object, BaseModel) or not issubclass(base, BaseModel):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            is_said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                about = " ".join(str(below.value.value).split()) if is_said else ""
                said[field.target.id] = about or said.get(field.target.id, "")
    return said


def shown_type(annotation: Any) -> str:
    """An annotation as a reader understands it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return shown_type(inner[0])
    if origin is Literal:
        return " or ".join(map(json.dumps, inner))
    if origin in (Union, UnionType):
        return " or ".join(map(shown_type, inner))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(shown_type, inner))}]"
    return "null" if annotation in (None, NoneType) else getattr(annotation, "__name__", str(annotation))


def table(model: type[BaseModel], skip: tuple[str, ...] = ()) -> str:
    """One row a setting; sections of their own are named."""
    said = said_of_fields(model)
    lines = ["| setting | type | default | what it says |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        if name in skip:
            continue
        is_section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        default = (
            "required"
            if field.is_required()
            else ""
            if is_section
            else f"`{json.dumps(field.get_default(call_default_factory=True))}`"
        )
        kind = "section, below" if is_section else f"`{shown_type(field.annotation)}`"
        what = said.get(name, "").replace("``", "`").replace("|", "or")
        lines.append(f"| `{name}` | {kind} | {default} | {what} |")
    return "\n".join(lines)


def sections(model: type[BaseModel], path: str, level: int) -> list[str]:
    """The sections inside a model, one after the other."""
    parts: list[str] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            place = f"{path}.{name}" if path else name
            about = " ".join((inner.__doc__ or "").split()).replace("``", "`")
            parts += [f"{'#' * level} `{place}`", about, table(inner), *sections(inner, place, level + 1)]
    return parts


def configuration() -> str:
    """The page of settings."""
    parts = [HEAD, "## Top level", table(DynamoConfig), *sections(DynamoConfig, "", 2)]
    parts += ["## `lora_configs.NAME`", table(LoraConfig)]
    parts += ["## `tasks.NAME`", "Settings of each type; `training` and `generation` are sections."]
    for kind, task in sorted(task_types().items()):
        parts += [
            f"### type `{kind}`",
            table(task.Config),
            *(sections(task.Config, "tasks.NAME", 4) if kind == "translation" else []),
        ]
    assert TaskTraining.model_fields
    return "\n\n".join(parts) + "\n"


def commands() -> str:
    """The page of commands, by typer's own generator."""
    made = subprocess.run(
        [sys.executable, "-m", "typer", "dynamo_mtl.cli", "utils", "docs", "--name", "dynamo", "--title", "Commands"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return html.unescape(made.stdout).strip() + "\n"


def main() -> None:
    """Write both pages."""
    (DOCS / "configuration.md").write_text(configuration(), encoding="utf-8")
    (DOCS / "cli.md").write_text(commands(), encoding="utf-8")


if __name__ == "__main__":
    main()
