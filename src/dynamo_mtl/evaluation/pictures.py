"""Pictures of results and of routing: drawn once, as PNG files and as SVG that takes the colours of a page.

A picture is a function that fills axes from numbers. ``draw`` makes the figure around it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamo_mtl.errors import writable_folder
from dynamo_mtl.evaluation.result import SYSTEMS, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"
"""Stands for the colour of a page's text, until that is known."""
COLORS = ("#3b7dd8", "#e07b39", "#3a9d5d", "#b0569f", "#a08b2a", "#2fa3a8", "#d1495b", "#7a6bd1")
"""Of tasks, in their order; legible on white and on black."""


@dataclass(frozen=True)
class Picture:
    """Something to look at."""

    name: str
    """Of its file, without ending."""
    caption: str
    """What it shows and how to read it."""
    size: tuple[float, float]
    """Inches."""
    fill: Callable[[Axes], None]

    def png(self) -> bytes:
        """On white, for files."""
        return self._render("png", "black")

    def svg(self) -> str:
        """With a transparent ground, in the colour of the text around it."""
        text = self._render("svg", INK).decode("utf-8").replace(INK, "currentColor")
        body = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        # Names inside one page must not collide between pictures.
        body = re.sub(r'(id="|href="#|url\(#)', rf"\1{self.name}-", body)
        return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', body, count=1)

    def _render(self, kind: str, ink: str) -> bytes:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        named = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor", "axes.titlecolor")
        look: dict[Any, Any] = {
            **dict.fromkeys(named, ink),
            "svg.fonttype": "none",
            "svg.hashsalt": self.name,
            "font.size": 9,
        }
        with mpl.rc_context(look):
            figure = Figure(figsize=self.size, layout="constrained")
            FigureCanvasAgg(figure)
            axes = figure.subplots()
            axes.set_facecolor("none")
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            self.fill(axes)
            buffer = io.BytesIO()
            ground = "white" if kind == "png" else "none"
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(buffer, format=kind, dpi=150, facecolor=ground, metadata=metadata)
        return buffer.getvalue()


def save_pictures(pictures: Sequence[Picture], folder: Path) -> list[Path]:
    """Write PNG files. Raises ``ConfigError`` if the folder cannot be written."""
    writable_folder(folder, "the folder of pictures")
    paths = [folder / f"{picture.name}.png" for picture in pictures]
    for picture, path in zip(pictures, paths, strict=True):
        path.write_bytes(picture.png())
    return paths


def result_pictures(result: Result) -> list[Picture]:
    """Everything that a result file holds to look at."""
    found = [systems_picture(result)] if "oracle" in result.systems and len(result.systems) > 2 else []
    routing = result.routing
    if "confusion" in routing:
        found.append(confusion_picture(routing["confusion"], routing["tasks"], "bare inputs"))
    if "misroutes" in routing:
        found.append(misroutes_picture(routing["misroutes"]["adapter_only"], routing["tasks"]))
    return found


WIDEST = 1.5
"""Share of the oracle's score that is still drawn in its place; what is better lies at the edge."""


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
        axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.12), ncols=3, frameon=False)

    caption = "Every system's main metric on every task, as a share of the same model told the true task."
    return Picture("systems", caption, (7.2, 1.6 + 0.32 * len(names)), fill)


INK_GREY = "#8a8a8a"


def confusion_picture(matrix: Sequence[Sequence[int]], names: Sequence[str], inputs: str) -> Picture:
    """Each row as shares of a task's inputs; ``inputs`` says which they are."""
    counts = np.array(matrix, dtype=float)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    cells = [
        [f"{100 * share:.1f} %\n{int(count)}" for share, count in zip(*row, strict=True)]
        for row in zip(shares, counts, strict=True)
    ]
    return _matrix(
        "routing_confusion", f"Where the router sends {inputs}: rows are the true tasks.", shares, cells, names,
        "sent to the adapter of", "input of",
    )  # fmt: skip


def misroutes_picture(matrix: Sequence[Sequence[float]], names: Sequence[str]) -> Picture:
    """Each row relative to the task's own adapter."""
    scores = np.array(matrix, dtype=float)
    own = scores.diagonal()[:, None]
    shares = np.divide(scores, own, out=np.zeros_like(scores), where=own > 0)
    cells = [[f"{value:.3f}" if abs(value) <= 1 else f"{value:.1f}" for value in row] for row in scores]
    caption = (
        "What a task scores (main metric, its own head) under another task's adapter; colour: share of its own "
        "adapter's score."
    )
    return _matrix("misroutes", caption, shares.clip(0, 1), cells, names, "adapter of", "task")


def similarity_picture(matrix: Sequence[Sequence[float]], names: Sequence[str]) -> Picture:
    """Cosine similarity of the adapters' weight changes."""
    values = np.array(matrix)
    cells = [[f"{value:.2f}" for value in row] for row in values]
    caption = "Cosine similarity of the adapters' weight changes B A: near 0, adapters change unrelated directions."
    return _matrix("adapter_similarity", caption, np.abs(values), cells, names, "", "")


def correlation_picture(values: Mapping[str, Mapping[str, float]]) -> Picture:
    """Of properties of the input (rows) with the routing probability of tasks (columns)."""
    rows, columns = list(values), list(next(iter(values.values())))
    matrix = np.array([[values[r][c] for c in columns] for r in rows])
    cells = [[f"{value:+.2f}" for value in row] for row in matrix]
    caption = "Correlation of properties of the input with what the router says: what it may be looking at."
    return _matrix("correlations", caption, np.abs(matrix), cells, columns, "probability of", "", rows)


def _matrix(
    name: str, caption: str, shades: np.ndarray, cells: Sequence[Sequence[str]], columns: Sequence[str],
    below: str, beside: str, rows: Sequence[str] | None = None,
) -> Picture:  # fmt: skip
    """A table of shaded cells; ``shades`` in [0, 1]."""
    rows = columns if rows is None else rows

    def fill(axes: Axes) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        blues = LinearSegmentedColormap.from_list("fading", [(0.23, 0.49, 0.85, 0.0), (0.23, 0.49, 0.85, 1.0)])
        axes.imshow(shades, cmap=blues, vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel(below)
        axes.set_ylabel(beside)
        for row in range(len(rows)):
            for column in range(len(columns)):
                color = "white" if shades[row, column] > 0.6 else None
                axes.text(column, row, cells[row][column], ha="center", va="center", fontsize=8, color=color)

    return Picture(name, caption, (2.2 + 0.95 * len(columns), 1.2 + 0.5 * len(rows)), fill)


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
    """Share of inputs that are a task's own beside the routing weight that its adapter has."""

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
