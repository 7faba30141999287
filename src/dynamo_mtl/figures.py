"""Draws pictures as PNG files, and as SVG that takes the text colour of its page.

A picture is a function that fills axes from numbers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamo_mtl.storage import writable_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"
"""Placeholder for the colour of a page's text."""
COLORS = ("#3b7dd8", "#e07b39", "#3a9d5d", "#b0569f", "#a08b2a", "#2fa3a8", "#d1495b", "#7a6bd1")
"""Colours of the tasks, in order; legible on white and on black."""


@dataclass(frozen=True)
class Picture:
    """A picture with a caption."""

    name: str
    """File name, without the extension."""
    caption: str
    """What it shows and how to read it."""
    size: tuple[float, float]
    """Inches."""
    fill: Callable[[Axes], None]

    def png(self) -> bytes:
        """Render as PNG on white, for files."""
        return self._render("png", "black")

    def svg(self) -> str:
        """Render as SVG with a transparent background, in the colour of the text around it."""
        text = self._render("svg", INK).decode("utf-8").replace(INK, "currentColor")
        body = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        # The ids of several pictures on one page must not collide.
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


def confusion_picture(matrix: Sequence[Sequence[int]], names: Sequence[str], inputs: str) -> Picture:
    """Draw a confusion matrix whose rows are shares of a task's inputs; ``inputs`` says which inputs they are."""
    counts = np.array(matrix, dtype=float)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    cells = [
        [f"{100 * share:.1f} %\n{int(count)}" for share, count in zip(*row, strict=True)]
        for row in zip(shares, counts, strict=True)
    ]
    return matrix_picture(
        "routing_confusion", f"Where the router sends {inputs}: rows are the true tasks.", shares, cells, names,
        "sent to the adapter of", "input of",
    )  # fmt: skip


def matrix_picture(
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
