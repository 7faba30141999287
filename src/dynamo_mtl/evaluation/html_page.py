"""Write the report as one self-contained HTML file. The main findings come first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from dynamo_mtl.config.comparison_config import SYSTEMS
from dynamo_mtl.evaluation.analyzer import analysis_pictures
from dynamo_mtl.evaluation.report import (
    cost_rows,
    has_shift,
    margin,
    number,
    rejection_rows,
    result_facts,
    routing_rows,
    score_of,
    shift_rows,
)
from dynamo_mtl.evaluation.result import Result
from dynamo_mtl.evaluation.result_figures import result_pictures
from dynamo_mtl.figures import save_pictures
from dynamo_mtl.router_inputs import InputKind
from dynamo_mtl.storage import writable_folder

PAGE = "report.html"
ANALYSIS = "analysis.json"

Cell = str | tuple[str, str] | dict[str, str]
"""A text, a text with a smaller one below it, or a running text."""


@dataclass(frozen=True)
class Table:
    """A table of a page."""

    header: list[str]
    rows: list[list[Cell]]
    title: str = ""
    own: str = ""
    """First cell of the row that is marked."""
    folded: bool = False
    """Whether the table is collapsed at first."""


@dataclass(frozen=True)
class _Drawn:
    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading with what belongs to it."""

    title: str
    text: str = ""
    tables: list[Table] = field(default_factory=list)
    pictures: list[_Drawn] = field(default_factory=list)


def write_report(folder: Path, result: Result | None, analysis: Mapping[str, Any] | None = None) -> Path:
    """Write the page, the pictures as PNG files and the analysis as JSON. Returns the page.

    Args:
        folder: made if it is not there.
        result: scores of ``dynamo evaluate`` or ``dynamo compare``, if any.
        analysis: result of ``analyze_routing_decisions``, if any.

    Raises:
        ConfigError: the folder cannot be written.
    """
    writable_folder(folder, "the folder of the report")
    of_result = result_pictures(result) if result else []
    # Both have a confusion matrix. The result's is kept, since it covers all plain inputs.
    known = {picture.name for picture in of_result}
    of_analysis = [p for p in analysis_pictures(analysis) if p.name not in known] if analysis else []
    save_pictures([*of_result, *of_analysis], folder)
    if analysis:
        (folder / ANALYSIS).write_text(json.dumps(analysis, indent=1) + "\n", encoding="utf-8")
    drawn = {p.name: _Drawn(p.svg(), p.caption) for p in [*of_result, *of_analysis]}
    sections = _result_sections(result, drawn) if result else []
    sections += _analysis_sections(analysis, drawn, result is None) if analysis else []
    place = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(place), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        title="DYNAMO: what routing buys" if result else "DYNAMO: how the router decides",
        facts=result_facts(result) if result else f"{analysis['n']} inputs" if analysis else "",
        answer=_answer(result) if result else [],
        warnings=analysis["warnings"] if analysis else [],
        sections=sections,
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
    return folder / PAGE


def _answer(result: Result) -> list[str]:
    """The first sentences: what routing costs against perfect routing, and what simpler systems give."""
    lines: list[str] = []
    systems = result.systems
    if "dynamo" in systems and "oracle" in systems:
        kept = {
            task: systems["dynamo"][task][metric] / systems["oracle"][task][metric]
            for task, metric in result.main_metrics.items()
            if systems["oracle"][task][metric]
        }
        if kept:
            worst = min(kept, key=kept.__getitem__)
            lines.append(
                f"Choosing the adapter by itself, DYNAMO keeps {100 * sum(kept.values()) / len(kept):.1f} % of what "
                f"the same model scores when it is given the task; least on {worst} ({100 * kept[worst]:.1f} %)."
            )
    rivals = [name for name in SYSTEMS if name in systems and name not in ("dynamo", "oracle", "soft", "trivial")]
    if rivals and "dynamo" in systems and result.intervals:
        wins = [sentence for name in rivals if (sentence := _compared(result, name))]
        rest = "None of the others is better on any task." if wins else "No other system is better on any task."
        lines.append("Beyond its 95 % interval: " + " ".join([*wins, *([rest] if len(wins) < len(rivals) else [])]))
    return lines


def _compared(result: Result, rival: str) -> str:
    """On which tasks another system is better, beyond DYNAMO's interval; empty if on none."""
    better: list[str] = []
    for task, metric in result.main_metrics.items():
        own, other = result.systems["dynamo"][task][metric], result.systems[rival][task][metric]
        if other > result.intervals.get("dynamo", {}).get(task, (own, own))[1]:
            better.append(f"{task} ({number(other)} against {number(own)})")
    named = rival.replace("_", " ")
    return f"{named.capitalize()} is better on {', '.join(better)}." if better else ""


def _result_sections(result: Result, drawn: Mapping[str, _Drawn]) -> list[Section]:
    names = [name for name in SYSTEMS if name in result.systems]
    tasks = result.main_metrics
    scores = Table(
        ["system", *(f"{task} {metric}" for task, metric in tasks.items())],
        [[name, *(_score(result, name, task) for task in tasks)] for name in names],
        own="dynamo",
    )
    what = [[name, {"text": SYSTEMS[name]}] for name in names]
    meaning = Table(["system", "what it is"], what, "What each system is", folded=True)
    sections = [Section("Scores", "", [scores, meaning], _chosen(drawn, "systems"))] if names else []
    if result.costs:
        header, rows = cost_rows(result)
        text = "Times are of this machine; compare them with each other only. Empty: nothing of its own is trained."
        sections.append(Section("What each system costs", text, [Table(header, _cells(rows), own="dynamo")]))
    if InputKind.PLAIN in result.routing or InputKind.INSTRUCTED in result.routing:
        header, rows = routing_rows(result)
        sections.append(
            Section("Routing", "", [Table(header, _cells(rows))], _chosen(drawn, "routing_confusion", "misroutes"))
        )
    if has_shift(result):
        header, rows = shift_rows(result.shift)
        text = (
            "Plain inputs, without an instruction, of which only the task is known. Training has read none of them. "
            "Surely wrong: not rejected, and sent to another task with a confidence of 0.9 or more."
        )
        sections.append(Section("Inputs from elsewhere", text, [Table(header, _cells(rows))]))
    if result.routing.get("rejection"):
        header, rows = rejection_rows(result)
        text = (
            "When not to trust it: each task in turn is left out of what is known. Its inputs should then be less "
            "familiar than those of the other tasks."
        )
        sections.append(Section("Inputs of no task", text, [Table(header, _cells(rows))]))
    details = [
        Table(
            ["system", *_metrics(result, task)],
            [[name, *(_shown(result.systems[name][task].get(m)) for m in _metrics(result, task))] for name in names],
            f"All metrics of {task}",
            folded=True,
        )
        for task in tasks
    ]
    notes = [[key, {"text": json.dumps(value)}] for key, value in {**result.signatures, **result.notes}.items()]
    sections.append(Section("Details", "", [*details, Table(["", ""], notes, "Signatures and notes", folded=True)]))
    return sections


def _analysis_sections(analysis: Mapping[str, Any], drawn: Mapping[str, _Drawn], alone: bool) -> list[Section]:
    """``alone``: no result has shown where the router sends plain inputs."""
    confidence = _chosen(drawn, "reliability", "risk_coverage")
    usage = _chosen(drawn, "usage", "feature_map", "adapter_similarity", "correlations")
    instructions = [
        [{"text": row["instruction"]}, f"{100 * row['accuracy']:.1f} %", str(row["n"])] for row in analysis["wordings"]
    ]
    header = ["task", "sent to", "kind", "own", "confidence", "familiarity", "input"]
    tables = [
        Table(header, _examples(analysis["hardest"]), "Inputs whose own task is thought least likely", folded=True),
        Table(header, _examples(analysis["confusing"]), "Inputs between two tasks", folded=True),
        Table(["instruction", "followed", "inputs"], instructions, "Instructions, the worst first", folded=True),
    ]
    return [
        Section("How far its confidence can be trusted", "", [], confidence),
        Section("What the router looks at", "", [], (_chosen(drawn, "routing_confusion") if alone else []) + usage),
        Section("Where it goes wrong", "", tables),
    ]


def _examples(rows: Sequence[Mapping[str, Any]]) -> list[list[Cell]]:
    return [
        [
            row["task"], row["sent_to"], row["kind"], f"{row['own_probability']:.3f}", f"{row['confidence']:.3f}",
            f"{row['familiarity']:.3f}",
            {"text": " ".join(str(part) for part in (row["instruction"], row["text"]) if part)[:400]},
        ]
        for row in rows
    ]  # fmt: skip


def _chosen(drawn: Mapping[str, _Drawn], *names: str) -> list[_Drawn]:
    return [drawn[name] for name in names if name in drawn]


def _cells(rows: list[list[str]]) -> list[list[Cell]]:
    return [list(row) for row in rows]


def _score(result: Result, system: str, task: str) -> Cell:
    score, around = score_of(result, system, task), margin(result, system, task)
    return (score, around) if around else score


def _metrics(result: Result, task: str) -> list[str]:
    first = next(iter(result.systems.values()), {task: {}})
    return list(first[task])


def _shown(value: float | None) -> str:
    return "" if value is None else number(value)
