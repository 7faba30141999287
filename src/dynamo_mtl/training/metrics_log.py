"""Logs the values of a run: always as JSON lines, to trackers if configured, and now and then on the console."""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from dynamo_mtl.distributed import all_reduce_sum, world
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.figures import Picture
from dynamo_mtl.markdown import markdown_table
from dynamo_mtl.messages import clock

logger = logging.getLogger(__name__)


class MetricsLog:
    """Writes every logged value as one JSON line to ``<folder>/metrics.jsonl``, and to Accelerate's trackers.

    Only the first process of a job writes.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, end: tuple[int, int] | None = None) -> None:
        """Open the log.

        Args:
            folder: folder of the log.
            accelerator: its trackers get the values too.
            end: bytes and lines of the log at the point where a resumed run continues. Whatever was logged later, by
                this run or by another one in the same folder, is moved to ``metrics.cut.jsonl``.
        """
        self.accelerator = accelerator
        self.path = folder / "metrics.jsonl" if world().is_main else Path(os.devnull)
        self.count = 0
        self.failed: set[str] = set()
        """Names of trackers that failed; they get no more values."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a", encoding="utf-8")
            if world().is_main and end is not None and self.file.tell() >= end[0]:
                self._cut(end[0])
                self.count = end[1]
        except OSError as error:
            raise ConfigError(f"log_dir: {self.path} cannot be written ({error})") from error

    def _cut(self, end: int) -> None:
        with self.path.open("rb") as file:
            file.seek(end)
            later = file.read()
        if later:
            with self.path.with_name("metrics.cut.jsonl").open("ab") as file:
                file.write(later)
            self.file.truncate(end)

    @property
    def end(self) -> tuple[int, int]:
        """Bytes and lines so far."""
        return self.file.tell(), self.count

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Log the values of a step."""
        self.file.write(json.dumps({"phase": phase, "step": step, **values}) + "\n")
        self.file.flush()
        numbers = {f"{phase}/{name}": value for name, value in values.items()}
        # Each phase counts its own steps, but trackers need a step that only grows.
        self._tell(lambda tracker: tracker.log(numbers, step=self.count))
        self.count += 1

    @property
    def has_trackers(self) -> bool:
        """Whether any tracker is active."""
        return any(tracker.name not in self.failed for tracker in self.accelerator.trackers)

    def show(self, picture: Picture) -> None:
        """Send a picture to the trackers that take pictures; called rarely."""
        image = _pixels(picture)

        def tell(tracker: Any) -> None:
            if tracker.name == "tensorboard":
                tracker.log_images({picture.name: image[None]}, self.count, dataformats="NHWC")
            elif tracker.name == "mlflow":
                _mlflow().log_image(image, artifact_file=f"{picture.name.replace(' ', '_')}.png")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({picture.name: [image]}, self.count)

        self._tell(tell)

    def table(self, name: str, columns: list[str], rows: list[list[str]]) -> None:
        """Send a table of texts to the trackers; those without tables get it as Markdown."""
        text = markdown_table(list(map(_cell, columns)), [list(map(_cell, row)) for row in rows])

        def tell(tracker: Any) -> None:
            if tracker.name == "wandb":
                tracker.log_table(name, columns=columns, data=rows, step=self.count)
            elif tracker.name == "mlflow":
                _mlflow().log_text(text, f"{name.replace(' ', '_')}.md")
            else:
                tracker.log({name: text}, self.count)

        self._tell(tell)

    def close(self) -> None:
        """Close the file and finish all trackers, including those that failed."""
        self.file.close()
        self.failed.clear()
        self._tell(lambda tracker: tracker.finish())

    def _tell(self, action: Callable[[Any], None]) -> None:
        """Call ``action`` on every tracker. One that fails is dropped; training and the other trackers continue."""
        for tracker in self.accelerator.trackers:
            if tracker.name in self.failed:
                continue
            try:
                action(tracker)
            except Exception as error:  # trackers are network clients, which raise anything
                self.failed.add(tracker.name)
                logger.warning(
                    "the tracker %s failed and is left out from here on (%s: %s)",
                    tracker.name, type(error).__name__, error,
                )  # fmt: skip


def _mlflow() -> Any:
    """Return the ``mlflow`` package, which logs to the active run. Accelerate's tracker only holds that run."""
    return importlib.import_module("mlflow")


def _pixels(picture: Picture) -> np.ndarray:
    """``(height, width, 3)`` bytes."""
    from matplotlib.image import imread

    return (255 * imread(io.BytesIO(picture.png()), format="png")[:, :, :3]).astype(np.uint8)


def _cell(text: str) -> str:
    """Text inside a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def start_text_log(folder: Path) -> logging.Handler | None:
    """Append the console output to ``train.log`` too. Only the first process does."""
    if not world().is_main:
        return None
    handler = logging.FileHandler(folder / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%dT%H:%M:%S"))
    logging.getLogger("dynamo_mtl").addHandler(handler)
    return handler


def stop_text_log(handler: logging.Handler | None) -> None:
    """End what ``start_text_log`` began."""
    if handler is not None:
        logging.getLogger("dynamo_mtl").removeHandler(handler)
        handler.close()


@dataclass(frozen=True)
class Ahead:
    """The training that follows a stage in the same phase."""

    place: str = ""
    """Position of the stage in its phase, such as "task 2 of 5"."""
    updates: float = 0.0
    """Time that the later stages of the phase take, in updates of this one."""


NOTHING_AHEAD = Ahead()


class Progress:
    """Rate and time left of a phase."""

    def __init__(self, phase: str, steps: int, first: int = 0, ahead: Ahead = NOTHING_AHEAD) -> None:
        self.phase, self.steps, self.first, self.ahead = phase, steps, first, ahead
        self.began, self.tokens = time.perf_counter(), 0

    def line(self, step: int, loss: float) -> dict[str, float]:
        """Log one console line after ``step`` steps and return rate and time left."""
        elapsed = time.perf_counter() - self.began
        rate = (step - self.first) / elapsed
        rates = {"steps_per_second": round(rate, 3)}
        shown = f"{rate:.2f} steps/s"
        tokens = float(all_reduce_sum(torch.tensor(float(self.tokens))))
        if tokens:  # cached features have none
            rates["tokens_per_second"] = round(tokens / elapsed, 1)
            shown += f"  {tokens / elapsed:.0f} tokens/s"
        left = clock((self.steps - step) / rate)
        if self.ahead.updates:
            left += f", about {clock((self.steps - step + self.ahead.updates) / rate)} of all tasks"
        name = f"{self.phase} ({self.ahead.place})" if self.ahead.place else self.phase
        logger.info("%s  step %d/%d  loss %.4f  %s  %s left", name, step, self.steps, loss, shown, left)
        return rates
