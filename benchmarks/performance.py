"""What docs/performance.md shows of a result file of the races: tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamo_mtl.figures import COLORS, Picture
from dynamo_mtl.markdown import markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Bench = Mapping[str, Any]


def read_bench(path: Path) -> Bench:
    """The result file that ``run.py`` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def race_table(bench: Bench) -> str:
    """Every race: what was divided by what, the ratio with its quartiles, and whether the target is met."""
    rows = [
        [
            f"`{name}`",
            found["what"],
            f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f})",
            f"{'≥' if found['target_is'] == 'at least' else '≤'} {found['target']:g}",
            "yes" if found["met"] else "**no**",
        ]
        for name, found in bench["races"].items()
    ]
    return markdown_table(["race", "what", "ratio (quartiles)", "target", "met"], rows)


def memory_table(bench: Bench) -> str:
    """Peak extra memory, where a race measured it."""
    rows: list[list[str]] = []
    for name, found in bench["races"].items():
        if "memory_ratio" in found:
            ours, theirs = found["extra_mib"].values()
            verdict = "yes" if found["memory_met"] else "**no**"
            rows.append(
                [f"`{name}`", f"{ours:.1f}", f"{theirs:.1f}", f"{found['memory_ratio']:.2f}",
                 f"≤ {found['memory_target']:g}", verdict]
            )  # fmt: skip
    return markdown_table(["race", "DYNAMO MiB", "other MiB", "ratio", "target", "met"], rows)


def breakdown_table(bench: Bench) -> str:
    """Where the time of a routed forward goes."""
    shares: Mapping[str, Mapping[str, float]] = bench["breakdown"]["shares"]
    kinds = list(dict.fromkeys(kind for own in shares.values() for kind in own))
    return markdown_table(
        ["", *kinds], [[name, *(f"{own.get(kind, 0):.0%}" for kind in kinds)] for name, own in shares.items()]
    )


def limit_table(bench: Bench) -> str:
    """The routed forward beside the matrix products that nobody can leave out."""
    rows: list[list[str]] = []
    for name, found in bench["breakdown"]["limits"].items():
        routed, products = found["routed_ms"], found["products_ms"]
        rows.append([name, f"{routed:.1f}", f"{products:.1f}", f"{products / routed:.0%}"])
    return markdown_table(["backbone", "routed forward, ms", "matrix products alone, ms", "share"], rows)


def machine_text(bench: Bench) -> str:
    """What the figures belong to."""
    return f"Measured on {describe_machine(bench['machine'])}; {bench['seconds'] / 60:.0f} minutes for all races."


def describe_machine(machine: Mapping[str, Any]) -> str:
    """What ``harness.machine`` noted, in words."""
    packages = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "transformers", "peft"))
    where = f"{machine['cpu']}, {machine['threads']} threads" if machine["device"] == "cpu" else machine["device"]
    return f"{where}; {packages}"


KINDS = {
    "races": race_table,
    "memory": memory_table,
    "breakdown": breakdown_table,
    "limits": limit_table,
    "machine": machine_text,
}


def draw_curves(axes: Axes, curves: Mapping[str, Mapping[str, float]], x: str, y: str, *, is_log: bool = False) -> None:
    """A line for each of some named curves, from 0 on."""
    for color, (name, curve) in zip(COLORS, curves.items(), strict=False):
        axes.plot([int(n) for n in curve], list(curve.values()), "o-", color=color, label=name)
    if is_log:
        axes.set_xscale("log", base=2)
        points = [int(n) for n in next(iter(curves.values()))]
        axes.set_xticks(points, [str(n) for n in points])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False)


def question_pictures(found: Mapping[str, Any]) -> list[Picture]:
    """What several questions about one text cost over their number, and quality over the tap."""
    cost = {f"tap {tap}": {n: own["ratio"] for n, own in curve.items()} for tap, curve in found["cost"].items()}
    tasks = next(iter(found["quality"].values()))
    quality = {task: {tap: scores[task] for tap, scores in found["quality"].items()} for task in tasks}
    return [
        Picture(
            "questions-cost",
            "Time of several questions about one text in one call, over as many calls, for each tap.",
            (6.5, 3.6),
            lambda axes: draw_curves(axes, cost, "questions about one text", "share of single calls"),
        ),
        Picture(
            "questions-quality",
            "Accuracy of three tasks by the number of layers below the adapters.",
            (6.5, 3.6),
            lambda axes: draw_curves(axes, quality, "tap layer", "accuracy"),
        ),
    ]


def curve_pictures(bench: Bench) -> list[Picture]:
    """Cost over the number of adapters, over sequence length, and over the tap."""
    races = bench["races"]
    adapters, lengths, taps = (races[n] for n in ("curve_over_adapters", "curve_over_lengths", "shared_trunk"))
    shared = {"measured": taps["measured_over_taps"], "work, by the formula": taps["work_over_taps"]}
    return [
        Picture(
            "performance-adapters",
            "Time of a forward over the number of adapters, as a multiple of a routed one with a single adapter.",
            (6.5, 3.6),
            lambda axes: draw_curves(axes, adapters["curves"], "adapters", "times one adapter", is_log=True),
        ),
        Picture(
            "performance-lengths",
            f"Milliseconds of {lengths['tokens']:,} tokens over the length of the sequences.",
            (6.5, 3.6),
            lambda axes: draw_curves(axes, lengths["curves"], "tokens in a sequence", "ms", is_log=True),
        ),
        Picture(
            "performance-taps",
            "Five tasks on one text over five passes, by the number of layers below the adapters.",
            (6.5, 3.6),
            lambda axes: draw_curves(axes, shared, "tap layer", "share of five passes"),
        ),
    ]
