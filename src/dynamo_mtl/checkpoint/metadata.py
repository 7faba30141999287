"""Reads the metadata of a checkpoint, ``dynamo.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter

from dynamo_mtl.errors import CheckpointError
from dynamo_mtl.model.calibration import AnswerCalibration, Calibration

METADATA = "dynamo.json"
FORMAT_VERSION = 5
"""Version 1 has no manifest and is read without verification. Up to version 2, no task copies words. Up to version 3,
no features of inputs are stored, and no task was added later. Up to version 4, no answers are calibrated."""


@dataclass(frozen=True)
class Metadata:
    """The contents of ``dynamo.json``."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    tasks: list[str]
    """In the order of the router's outputs."""
    backbone: str
    weight_hash: str
    """SHA-256 of the backbone's weight file."""
    tap_layer: int
    phase: str
    seed: int
    train_seconds: float
    commit: str | None = None
    """Revision of the source tree that trained it."""
    dataset_sizes: dict[str, int] = field(default_factory=dict)
    """Training examples that were used, by task."""
    data_hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the rows of a task's training and validation data, as they were read."""
    data_revisions: dict[str, str] = field(default_factory=dict)
    """Commit of each task's data set, if it comes from the hub."""
    device: str = "cpu"
    peak_memory_mib: float = 0.0
    """Highest memory use of a training process."""
    validation_score: float | None = None
    """Validation score at the end of the last stage of training, by the measure of that stage."""
    calibration: Calibration = field(default_factory=Calibration)
    """Calibration of the router's confidence, fitted at the end of each phase that trains the router."""
    answers: dict[str, AnswerCalibration] = field(default_factory=dict)
    """Calibration of each task's answers, fitted at the end of each phase that trains its adapter."""
    format: int = FORMAT_VERSION


def read_metadata(folder: Path) -> Metadata:
    """Read ``dynamo.json``. Raises ``CheckpointError`` if it is missing, broken or of a newer format."""
    path = folder / METADATA
    try:
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text)
        if raw["format"] > FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format {raw['format']} is newer than this program reads ({FORMAT_VERSION}); "
                "update it: git pull, then pip install -e ."
            )
        return TypeAdapter(Metadata).validate_json(text)
    except OSError as error:
        raise CheckpointError(f"{folder}: not a checkpoint (no {METADATA}); train one with: dynamo train") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not readable as checkpoint metadata ({reason})") from error
