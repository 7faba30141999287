"""Format a result as tables for the console and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dynamo_mtl.config.comparison_config import SYSTEMS
from dynamo_mtl.evaluation.result import Result
from dynamo_mtl.markdown import markdown_table
from dynamo_mtl.router_inputs import InputKind


def result_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each task's main metric under every system, and what dynamo keeps of the oracle's score.

    A score is followed by its 95 % interval over examples, or by its standard deviation over seeds.
    """
    metrics = result.main_metrics
    header = ["system", *(f"{task} {metric}" for task, metric in metrics.items())]
    names = [name for name in SYSTEMS if name in result.systems]
    rows = [[name, *(_with_margin(result, name, task) for task in metrics)] for name in names]
    if "dynamo" in names and "oracle" in names:
        both = [(result.systems["dynamo"][t][m], result.systems["oracle"][t][m]) for t, m in metrics.items()]
        rows.append(["dynamo / oracle", *(f"{100 * own / oracle:.1f} %" if oracle else "-" for own, oracle in both)])
    if names:
        rows.append(["examples", *(str(int(result.systems[names[0]][task]["n"])) for task in metrics)])
    return header, rows


def score_of(result: Result, system: str, task: str) -> str:
    """The main metric of a task."""
    return number(result.systems[system][task][result.main_metrics[task]])


def margin(result: Result, system: str, task: str) -> str:
    """Return the uncertainty of a score; empty if it was not measured."""
    if result.spread:
        return f"± {number(result.spread[system][task])}"
    interval = result.intervals.get(system, {}).get(task)
    return f"{number(interval[0])} to {number(interval[1])}" if interval else ""


def routing_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Header and rows: routing by kind of input."""
    header = ["inputs", "accuracy", "macro", "worst task", "entropy", "load balance", "ece", "brier", "aurc", "n"]
    keys = ("accuracy", "macro", "worst_task", "entropy", "load_balance", "ece", "brier", "aurc")
    names = {**{kind.value: kind.shown for kind in InputKind}, "length_only": "plain, by length alone"}
    rows = [
        [title, *(_four(result.routing[kind].get(key)) for key in keys), str(result.routing[kind]["n"])]
        for kind, title in names.items()
        if kind in result.routing
    ]
    return header, rows


def rejection_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Header and rows: how well inputs of each task are separated from known ones if that task is unknown."""
    header = ["left out", "auroc", "its inputs rejected", "known inputs rejected", "n"]
    rows = [
        [task, f"{v['auroc']:.3f}", *(f"{100 * v[k]:.1f} %" for k in ("rejected", "false_rejected")), str(v["n"])]
        for task, v in result.routing.get("rejection", {}).items()
    ]
    return header, rows


def shift_rows(shift: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: routing of plain inputs from elsewhere, of which only the task is known.

    Args:
        shift: as ``evaluation.shift.score_shift`` gives it.
    """
    header = ["inputs", "task", "right", "rejected", "either", "surely wrong", "wrong ones to", "n"]
    everyday = shift.get("everyday", {})
    rows = [_shift_row("everyday", own) for own in everyday.get("tasks", {}).values()]
    rows += [_shift_row("everyday", {**everyday, "task": "all"})] if everyday else []
    rows += [_shift_row(name, own) for name, own in shift.get("sets", {}).items()]
    if "mean_right" in shift:
        mean = {"right": shift["mean_right"], "right_or_rejected": shift["mean_right_or_rejected"]}
        rows.append(_shift_row("mean of the files", mean))
    return header, rows


def _shift_row(name: str, own: Mapping[str, Any]) -> list[str]:
    shares = (own.get(key) for key in ("right", "rejected", "right_or_rejected", "confident_wrong"))
    others = {task: count for task, count in own.get("sent_to", {}).items() if task != own["task"]}
    most = max(others, key=others.__getitem__, default="")
    return [
        name, own.get("task", ""), *("" if share is None else f"{100 * share:.1f} %" for share in shares), most,
        str(own.get("n", "")),
    ]  # fmt: skip


def has_shift(result: Result) -> bool:
    """Whether routing of inputs from elsewhere was scored."""
    return bool(result.shift.get("sets") or result.shift.get("everyday"))


def confidence_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Header and rows: how far the confidence of the answers can be trusted, without and with calibration."""
    header = [
        "task",
        "temperature",
        "ece before",
        "after",
        "by chance",
        "brier before",
        "after",
        "aurc before",
        "after",
        "labels",
    ]
    keys = ["ece_before", "ece_after", "ece_chance", "brier_before", "brier_after", "aurc_before", "aurc_after"]
    rows = [
        [task, f"{own['temperature']:.2f}", *(_four(own.get(key)) for key in keys), str(int(own["n"]))]
        for task, own in result.confidence.items()
    ]
    return header, rows


def cost_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what each system takes."""
    header = ["system", "trained parameters", "training s", "training MiB", "ms an input", "extra MiB to answer"]

    def shown(value: float | None, digits: int = 0) -> str:
        return "" if value is None else f"{value:,.{digits}f}"

    rows = [
        [
            name, shown(c["trained_parameters"]), shown(c["train_seconds"]), shown(c["train_peak_mib"]),
            shown(c["inference_ms"], 1), shown(c["inference_extra_mib"]),
        ]
        for name, c in result.costs.items()
    ]  # fmt: skip
    shown_columns = [c for c in range(len(header)) if c == 0 or any(row[c] for row in rows)]
    return [header[c] for c in shown_columns], [[row[c] for c in shown_columns] for row in rows]


def result_facts(result: Result) -> str:
    """Say what was trained, where and how long, and how much of what full fine-tuning trains."""
    minutes = result.train_seconds / 60
    text = f"Backbone {result.backbone}, {result.device}, seed {result.seed}, {minutes:.0f} minutes of training."
    counts = result.parameters
    if not counts:
        return text
    vocabularies = counts["target_vocabularies"]
    own = counts["adapters"] + counts["router"] + counts["heads"]
    whole = counts["backbone"] + counts["heads"]
    share, without = (own + vocabularies) / (whole + vocabularies), own / whole
    return (
        f"{text} {(own + vocabularies) / 1e6:.1f} million numbers are trained, {100 * share:.0f} % of what full "
        f"fine-tuning trains, or {100 * without:.0f} % without target vocabularies."
    )


def print_result(result: Result) -> None:
    """Print all tables to the console."""
    if result.systems:
        print_table("Tasks", *score_rows(result))
    for sentence in confused_labels(result):
        Console().print(sentence, highlight=False)
    if "trivial" in result.systems:
        Console().print(trivial_text(result))
    print_table("Routing", *_turned(*routing_rows(result)))
    if has_shift(result):
        print_table("Routing of inputs from elsewhere", *shift_rows(result.shift))
    if result.routing.get("rejection"):
        print_table("Inputs of a task that was left out", *rejection_rows(result))
    if result.confidence:
        print_table("Confidence of the answers", *_turned(*confidence_rows(result)))
    if result.costs:
        print_table("Costs", *cost_rows(result))


def trivial_text(result: Result) -> str:
    """What the system without learning does for each task."""
    return "Trivial: " + "; ".join(f"{task}: {what}" for task, what in result.trivial_systems.items()) + "."


def score_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Header and rows for a narrow console: the main metric of every task under each system, a row for both."""
    header = ["task", "metric", "system", "score", "std" if result.spread else "95 % interval", "n"]
    rows: list[list[str]] = []
    for task, metric in result.main_metrics.items():
        for system in (name for name in SYSTEMS if name in result.systems):
            count = str(int(result.systems[system][task]["n"]))
            shown = [score_of(result, system, task), margin(result, system, task), count]
            rows.append([task, metric, system, *shown] if not rows or rows[-1][0] != task else ["", "", system, *shown])
    return header, rows


def confused_labels(result: Result, most: int = 3) -> list[str]:
    """Describe the most common confusions of labels, one sentence per task."""
    said: list[str] = []
    for task, answered in result.labels.items():
        total = {label: sum(own.values()) for label, own in answered.items()}
        wrong = [(n, label, other) for label, own in answered.items() for other, n in own.items() if other != label]
        worst = sorted(wrong, key=lambda one: -one[0])[:most]
        if worst:
            each = ", ".join(f"{n} of {total[label]} '{label}' as '{other}'" for n, label, other in worst)
            said.append(f"{task} takes {each}")
    return said


def _turned(header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Rows as columns."""
    columns = list(zip(header, *rows, strict=True))
    return list(columns[0]), [list(column) for column in columns[1:]]


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table to the console. If that is too narrow for the longest words, print one line per cell instead."""
    columns = list(zip(header, *rows, strict=True))
    longest = [max(len(word) for cell in cells for word in cell.split() or [""]) for cells in columns]
    console = Console()
    if sum(longest) + len(longest) > console.width:
        console.print(title, style="italic")
        for row in rows:
            lines = [f"  {name}: {cell}" for name, cell in zip(header, row, strict=True)]
            console.print("\n".join(lines), highlight=False)
        return
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name, cells in zip(header, columns, strict=True):
        # A number and its interval stay on one line; long texts are folded between words.
        table.add_column(name, no_wrap=max(map(len, cells)) <= 20 and sum(longest) < console.width // 2)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def result_markdown(result: Result) -> str:
    """All tables as Markdown, with what was trained and how long."""
    parts = [markdown_table(*result_rows(result))] if result.systems else []
    parts += [trivial_text(result)] if "trivial" in result.systems else []
    parts += [markdown_table(*routing_rows(result))]
    parts += [markdown_table(*shift_rows(result.shift))] if has_shift(result) else []
    parts += [markdown_table(*rejection_rows(result))] if result.routing.get("rejection") else []
    parts += [markdown_table(*confidence_rows(result))] if result.confidence else []
    parts += [markdown_table(*cost_rows(result))] if result.costs else []
    return "\n\n".join([result_facts(result), *parts])


def _with_margin(result: Result, system: str, task: str) -> str:
    score, around = score_of(result, system, task), margin(result, system, task)
    return f"{score} ({around})" if around else score


def _four(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def number(value: float) -> str:
    """Three decimals for shares, one for percentages."""
    return f"{value:.3f}" if abs(value) <= 1 else f"{value:.1f}"
