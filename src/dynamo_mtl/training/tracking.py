"""What a run leaves to read: JSON lines always, trackers if asked for, a line on the console now and then."""

from __future__ import annotations

import io
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.pictures import Picture
from dynamo_mtl.processes import add_up, here

logger = logging.getLogger(__name__)


class MetricsLog:
    """Writes every logged value as one JSON line to ``<folder>/metrics.jsonl``, and to Accelerate's trackers.

    Only the first process of a job writes.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, end: tuple[int, int] | None = None) -> None:
        """Open the log.

        Args:
            folder: where it is.
            accelerator: whose trackers are written to as well.
            end: bytes and lines after which a resumed run goes on; what was logged later is cut off.
        """
        self.accelerator = accelerator
        self.path = folder / "metrics.jsonl" if here().first else Path(os.devnull)
        self.count = 0
        self.trackers_failed = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a", encoding="utf-8")
            if here().first and end is not None and self.file.tell() >= end[0]:
                self.file.truncate(end[0])
                self.count = end[1]
        except OSError as error:
            raise ConfigError(f"log_dir: {self.path} cannot be written ({error})") from error

    @property
    def end(self) -> tuple[int, int]:
        """Bytes and lines so far."""
        return self.file.tell(), self.count

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Log the values of a step."""
        self.file.write(json.dumps({"phase": phase, "step": step, **values}) + "\n")
        self.file.flush()
        if self.accelerator.trackers and not self.trackers_failed:
            numbers = {f"{phase}/{name}": value for name, value in values.items()}
            # Phases count their own steps; trackers want one that only grows.
            self._tell(lambda: self.accelerator.log(numbers, step=self.count))
        self.count += 1

    @property
    def has_trackers(self) -> bool:
        """Whether somebody wants more than numbers."""
        return bool(self.accelerator.trackers) and not self.trackers_failed

    def show(self, picture: Picture) -> None:
        """Give a picture to the trackers that take some; called once in a while."""
        image = _pixels(picture)
        for tracker in self.accelerator.trackers if self.has_trackers else []:
            if tracker.name == "tensorboard":
                self._tell(lambda t=tracker: t.log_images({picture.name: image[None]}, self.count, dataformats="NHWC"))
            elif tracker.name == "mlflow":
                name = f"{picture.name.replace(' ', '_')}.png"
                self._tell(lambda t=tracker, name=name: t.tracker.log_image(image, artifact_file=name))
            elif hasattr(tracker, "log_images"):
                self._tell(lambda t=tracker: t.log_images({picture.name: [image]}, self.count))

    def table(self, name: str, columns: list[str], rows: list[list[str]]) -> None:
        """Give a table of texts to the trackers: as a table, or as Markdown where they have none."""
        text = "\n".join(
            "| " + " | ".join(map(_cell, line)) + " |" for line in [columns, ["---"] * len(columns), *rows]
        )
        for tracker in self.accelerator.trackers if self.has_trackers else []:
            if tracker.name == "wandb":
                self._tell(lambda t=tracker: t.log_table(name, columns=columns, data=rows, step=self.count))
            elif tracker.name == "mlflow":
                self._tell(lambda t=tracker: t.tracker.log_text(text, f"{name.replace(' ', '_')}.md"))
            else:
                self._tell(lambda t=tracker: t.log({name: text}, self.count))

    def close(self) -> None:
        """Finish the file and the trackers."""
        self.file.close()
        for tracker in self.accelerator.trackers:
            self._tell(tracker.finish)

    def _tell(self, action: Callable[[], None]) -> None:
        """Talk to the trackers. One that fails never stops the training: it is told nothing more."""
        try:
            action()
        except Exception as error:  # trackers are network clients, which raise anything
            self.trackers_failed = True
            logger.warning("a tracker failed and is left out from here on (%s: %s)", type(error).__name__, error)


def _pixels(picture: Picture) -> np.ndarray:
    """``(height, width, 3)`` bytes."""
    from matplotlib.image import imread

    return (255 * imread(io.BytesIO(picture.png()), format="png")[:, :, :3]).astype(np.uint8)


def _cell(text: str) -> str:
    """Text inside a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


class Progress:
    """Rate and time left of a phase."""

    def __init__(self, phase: str, steps: int, first: int = 0) -> None:
        self.phase, self.steps, self.first = phase, steps, first
        self.began, self.tokens = time.perf_counter(), 0

    def line(self, step: int, loss: float) -> dict[str, float]:
        """Log one console line after ``step`` steps and return rate and time left."""
        elapsed = time.perf_counter() - self.began
        rate = (step - self.first) / elapsed
        rates = {"steps_per_second": round(rate, 3)}
        shown = f"{rate:.2f} steps/s"
        tokens = float(add_up(torch.tensor(float(self.tokens))))
        if tokens:  # cached features have none
            rates["tokens_per_second"] = round(tokens / elapsed, 1)
            shown += f"  {tokens / elapsed:.0f} tokens/s"
        left = _clock((self.steps - step) / rate)
        logger.info("%s  step %d/%d  loss %.4f  %s  %s left", self.phase, step, self.steps, loss, shown, left)
        return rates


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
