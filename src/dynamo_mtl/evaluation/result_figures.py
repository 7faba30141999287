"""Pictures of results and of routing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dynamo_mtl.config.comparison_config import SYSTEMS
from dynamo_mtl.evaluation.result import Result
from dynamo_mtl.figures import COLORS, Picture, confusion_picture, matrix_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def result_pictures(result: Result) -> list[Picture]:
    """Draw everything in a result that can be drawn."""
    found = [systems_picture(result)] if "oracle" in result.systems and len(result.systems) > 2 else []
    routing = result.routing
    if "confusion" in routing:
        found.append(confusion_picture(routing["confusion"], routing["tasks"], "plain inputs"))
    if "misroutes" in routing:
        found.append(cross_adapter_picture(routing["misroutes"]["adapter_only"], routing["tasks"]))
    return found


WIDEST = 1.5
"""Largest share of the oracle's score on the axis; better scores are drawn at its end."""


def systems_picture(result: Result) -> Picture:
    """Main metric of every system on every task, as a share of the oracle's."""
    names = [name for name in SYSTEMS if name in result.systems and name != "oracle"]

    def fill(axes: Axes) -> None:
        for color, (task, metric) in zip(_colors(len(result.main_metrics)), result.main_metrics.items(), strict=True):
            oracle = result.systems["oracle"][task][metric]
            shares = [result.systems[name][task][metric] / oracle if oracle else 0.0 for name in names]
            for row, (name, share) in enumerate(zip(names, shares, strict=True)):
                low, high = result.intervals.get(name, {}).get(task, (None, None))
                if low is not None and high is not None and oracle:
                    ends = [min(end / oracle, WIDEST) for end in (low, high)]
                    axes.plot(ends, [row, row], color=color, alpha=0.35, linewidth=3)
                axes.plot(min(share, WIDEST), row, "o", color=color, markersize=6, label=task if row == 0 else None)
        axes.axvline(1.0, color=INK_GREY, linewidth=1, linestyle="--")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(-0.03, WIDEST + 0.04)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        bars = " (bars: 95 % bootstrap interval)" if result.intervals else ""
        axes.set_xlabel(f"main metric as a share of oracle routing{bars}")
        from matplotlib.transforms import offset_copy

        # Fixed distance below the axis label. A relative distance would overlap it in a low picture.
        below = offset_copy(axes.transAxes, axes.get_figure(root=True), 0, -34, units="points")
        axes.legend(loc="upper center", bbox_to_anchor=(0.45, 0), bbox_transform=below, ncols=3, frameon=False)

    caption = "Every system's main metric on every task, as a share of the same model given the true task."
    return Picture("systems", caption, (7.2, 1.6 + 0.32 * len(names)), fill)


INK_GREY = "#8a8a8a"


def cross_adapter_picture(matrix: Sequence[Sequence[float]], names: Sequence[str]) -> Picture:
    """Draw each task's scores under all adapters, coloured relative to its own adapter."""
    scores = np.array(matrix, dtype=float)
    own = scores.diagonal()[:, None]
    shares = np.divide(scores, own, out=np.zeros_like(scores), where=own > 0)
    cells = [[f"{value:.3f}" if abs(value) <= 1 else f"{value:.1f}" for value in row] for row in scores]
    caption = (
        "What a task scores (main metric, its own head) under another task's adapter; colour: share of its own "
        "adapter's score."
    )
    return matrix_picture("misroutes", caption, shares.clip(0, 1), cells, names, "adapter of", "task")


def similarity_picture(matrix: Sequence[Sequence[float]], names: Sequence[str]) -> Picture:
    """Cosine similarity of the adapters' weight changes."""
    values = np.array(matrix)
    cells = [[f"{value:.2f}" for value in row] for row in values]
    caption = "Cosine similarity of the adapters' weight changes B A: near 0, adapters change unrelated directions."
    return matrix_picture("adapter_similarity", caption, np.abs(values), cells, names, "", "")


def correlation_picture(values: Mapping[str, Mapping[str, float]]) -> Picture:
    """Draw the correlation of input properties (rows) with the routing probability of tasks (columns)."""
    rows, columns = list(values), list(next(iter(values.values())))
    matrix = np.array([[values[r][c] for c in columns] for r in rows])
    cells = [[f"{value:+.2f}" for value in row] for row in matrix]
    caption = "Correlation of properties of the input with what the router says: what it may be looking at."
    return matrix_picture("correlations", caption, np.abs(matrix), cells, columns, "probability of", "", rows)


def reliability_picture(bins: Mapping[str, Sequence[Mapping[str, float]]]) -> Picture:
    """Accuracy over confidence, for each kind of input."""

    def fill(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK_GREY, linewidth=1, linestyle="--")
        for color, (kind, values) in zip(_colors(len(bins)), bins.items(), strict=True):
            sizes = np.sqrt(np.array([b["n"] for b in values], dtype=float))
            x, y = [b["confidence"] for b in values], [b["accuracy"] for b in values]
            axes.plot(x, y, color=color, linewidth=1, alpha=0.6)
            axes.scatter(x, y, s=8 + 120 * sizes / max(1.0, sizes.max()), color=color, label=kind, alpha=0.85)
        axes.set_xlabel("confidence of the router")
        axes.set_ylabel("share routed right")
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.05)
        axes.legend(frameon=False, loc="upper left", markerscale=0.5)

    caption = "Reliability: on the dashed line, a confidence of 0.8 is right for 80 % of inputs. Dot area: inputs."
    return Picture("reliability", caption, (4.6, 3.8), fill)


def risk_coverage_picture(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Picture:
    """Share of wrong routes among the most confident inputs, for each kind."""

    def fill(axes: Axes) -> None:
        for color, (kind, curve) in zip(_colors(len(curves)), curves.items(), strict=True):
            axes.plot(curve["coverage"], curve["risk"], color=color, label=kind)
        axes.set_xlabel("share of inputs that are answered, surest first")
        axes.set_ylabel("share of these routed wrong")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, loc="upper left")

    return Picture("risk_coverage", "What the answered inputs risk, if the unsure ones are left out.", (4.6, 3.8), fill)


def map_picture(points: Mapping[str, Sequence[Sequence[float]]]) -> Picture:
    """Router features in two dimensions, coloured by the true task."""

    def fill(axes: Axes) -> None:
        for color, (task, values) in zip(_colors(len(points)), points.items(), strict=True):
            x, y = np.array(values).T
            axes.scatter(x, y, s=7, color=color, alpha=0.6, label=task, linewidths=0)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.legend(frameon=False, markerscale=2.5, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3)

    return Picture("feature_map", "What the router reads, in its two main directions between tasks.", (5.6, 5.0), fill)


def usage_picture(usage: Mapping[str, Mapping[str, float]]) -> Picture:
    """Draw each task's share of the inputs beside the routing weight of its adapter."""

    def fill(axes: Axes) -> None:
        names, places = list(usage), np.arange(len(usage))
        axes.barh(places - 0.2, [usage[n]["inputs"] for n in names], 0.36, color=INK_GREY, label="its own inputs")
        axes.barh(places + 0.2, [usage[n]["weight"] for n in names], 0.36, color=COLORS[0], label="routing weight")
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=2)

    caption = "Use of the adapters beside the true mix of the inputs."
    return Picture("usage", caption, (5.6, 1.2 + 0.45 * len(usage)), fill)


def _colors(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]
