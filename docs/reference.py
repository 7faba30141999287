"""Writes docs/configuration.md, docs/cli.md and docs/llms.txt from settings, commands and pages: make reference."""

import ast
import html
import inspect
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel

from dynamo_mtl.cli import app
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


def pages(nav: Any) -> list[tuple[str, str]]:
    """Title and file of every page of the site's navigation, without the decisions."""
    found: list[tuple[str, str]] = []
    for entry in nav:
        if isinstance(entry, dict):
            for title, below in entry.items():
                if title != "Decisions":
                    found += [(title, below)] if isinstance(below, str) else pages(below)
    return found


def first_sentence(page: str) -> str:
    """The first sentence of a page's first paragraph, as plain text."""
    prose = re.sub(r"^[#!<|-].*$", "", re.sub(r"```.*?```", "", page, flags=re.DOTALL), flags=re.MULTILINE)
    paragraph = " ".join(next(part for part in prose.split("\n\n") if part.strip()).split())
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", paragraph).replace("*", "").replace("`", "")
    return re.split(r"(?<=[.:])\s", plain)[0].rstrip(":")


def for_agents() -> str:
    """What a program that reads the documentation needs first (llmstxt.org): what this is, its commands, its pages."""
    site = yaml.load((DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    skill = (DOCS.parent / "skills" / "dynamo" / "SKILL.md").read_text(encoding="utf-8")
    lines = [f"# {site['site_name']}", "", f"> {site['site_description']}", "", "## First commands", ""]
    lines += [f"    {line}" for block in re.findall(r"```bash\n(.*?)```", skill, re.DOTALL) for line in block.splitlines()]
    lines += ["", "## All commands", ""]
    for name, command in sorted(typer.main.get_group(app).commands.items()):
        lines.append(f"- `dynamo {name}`: {(command.help or '').strip().splitlines()[0]}")
    lines += ["", "## Pages", ""]
    for title, file in pages(site["nav"]):
        about = first_sentence((DOCS / file).read_text(encoding="utf-8"))
        lines.append(f"- [{title}]({file}): {about}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all of them."""
    (DOCS / "configuration.md").write_text(configuration(), encoding="utf-8")
    (DOCS / "cli.md").write_text(commands(), encoding="utf-8")
    (DOCS / "llms.txt").write_text(for_agents(), encoding="utf-8")


if __name__ == "__main__":
    main()
