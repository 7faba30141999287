"""Read and write result files: the measurements of ``dynamo evaluate`` and ``dynamo compare`` as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from dynamo_mtl.errors import ConfigError

FORMAT = 1
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Cost:
    """What a system costs. Times and memory were measured on the machine that the result names."""

    trained_parameters: int
    train_seconds: float | None = None
    """Of everything that the system needs; None where it needs no training of its own beyond another system's."""
    train_peak_mib: float | None = None
    """Highest memory use of the training process."""
    inference_ms: float | None = None
    """Milliseconds per input to choose and answer, on a fixed mixed sample; the median over rounds."""
    inference_extra_mib: float | None = None
    """Peak GPU memory while answering, beyond what was in use before."""


@dataclass(frozen=True)
class Result:
    """What a result file holds."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    format: int
    backbone: str
    device: str
    seed: int
    commit: str | None
    """Revision of the source tree that trained the checkpoint."""
    train_seconds: float
    split: str
    dataset_sizes: Mapping[str, int]
    """Training examples of each task."""
    main_metrics: Mapping[str, str]
    trivial_systems: Mapping[str, str]
    systems: Mapping[str, Scores]
    routing: Mapping[str, Any]
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    """95 % bootstrap intervals of the main metrics over examples, by system and task."""
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Numbers in each part of the routed model; all but ``backbone`` are trained."""
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """``Cost`` of each system."""
    signatures: Mapping[str, str] = field(default_factory=dict)
    """Signatures of the metrics that have variants."""
    labels: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    """Of tasks with labels: expected label → answered label → how often, under the first of the systems."""
    confidence: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Calibration of the answers of each task with labels; see ``evaluation.confidence.score_confidence``."""
    shift: Mapping[str, Any] = field(default_factory=dict)
    """Routing of inputs from elsewhere; see ``evaluation.shift.score_shift``."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What else was chosen or found on the way, such as learning rates that were tried."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Those that decide what was trained; see ``config.identity.changed_setting``."""
    seeds: list[Mapping[str, Any]] = field(default_factory=list)
    """For several seeds: ``seed``, ``systems``, ``intervals``, ``routing`` and ``notes`` of each. ``systems`` above
    then holds their means."""
    spread: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Standard deviation of the main metrics over seeds, by system and task."""

    def write(self, path: Path) -> None:
        """Write as JSON. Raises ``ConfigError`` if the place cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: the result cannot be written ({error})") from error


def read_result(path: Path) -> Result:
    """Read a result file. Raises ``ConfigError`` if it is not a result file, or has another format."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ConfigError(f"{path}: format {found['format']!r}, this program reads format {FORMAT}")
        found.pop("execution", None)  # of version 0.1.0, which could run generated code
        result = TypeAdapter(Result).validate_python(found)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{path}: not a result file written by dynamo evaluate ({said:.200})") from error
    for system, scores in result.systems.items():
        for task, metric in result.main_metrics.items():
            if metric not in scores.get(task, {}):
                raise ConfigError(f"{path}: systems.{system}.{task}: has no {metric}, the main metric of this task")
    return result
