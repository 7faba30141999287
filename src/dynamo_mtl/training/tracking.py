"""What a run leaves to read: JSON lines always, trackers if asked for, a line on the console now and then."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from dynamo_mtl.errors import ConfigError

logger = logging.getLogger(__name__)


class MetricsLog:
    """Writes every logged value as one JSON line to ``<folder>/metrics.jsonl``, and to Accelerate's trackers."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.path = folder / "metrics.jsonl"
        self.count = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"log_dir: {self.path} cannot be written ({error})") from error

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Log the values of a step."""
        self.file.write(json.dumps({"phase": phase, "step": step, **values}) + "\n")
        self.file.flush()
        if self.accelerator.trackers:
            numbers = {f"{phase}/{name}": value for name, value in values.items()}
            # Phases count their own steps; trackers want one that only grows.
            self.accelerator.log(numbers, step=self.count)
        self.count += 1

    def close(self) -> None:
        """Finish the file and the trackers."""
        self.file.close()
        self.accelerator.end_training()


class Progress:
    """Rate and time left of a phase."""

    def __init__(self, phase: str, steps: int) -> None:
        self.phase, self.steps, self.began, self.tokens = phase, steps, time.perf_counter(), 0

    def line(self, step: int, loss: float) -> dict[str, float]:
        """Log one console line after ``step`` steps and return rate and time left."""
        elapsed = time.perf_counter() - self.began
        rates = {"steps_per_second": round(step / elapsed, 3)}
        shown = f"{step / elapsed:.2f} steps/s"
        if self.tokens:  # cached features have none
            rates["tokens_per_second"] = round(self.tokens / elapsed, 1)
            shown += f"  {self.tokens / elapsed:.0f} tokens/s"
        left = _clock((self.steps - step) / step * elapsed)
        logger.info("%s  step %d/%d  loss %.4f  %s  %s left", self.phase, step, self.steps, loss, shown, left)
        return rates


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
