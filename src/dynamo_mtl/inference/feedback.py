"""Rows that say which task an input should have gone to, with its text or only with what the router reads of it."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamo_mtl.data.files import file_rows
from dynamo_mtl.data.readers import raise_it
from dynamo_mtl.data.text_files import Reading
from dynamo_mtl.errors import DataError
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.system import System

FEATURES, TASK = "router_features", "right_task"
"""Columns of a row: the router's features in base64, and the task that is right."""


def feedback_row(predictor: Predictor, given: TextInput, task: str, with_text: bool) -> dict[str, Any]:
    """What is noted of an input whose right task a person has named.

    Args:
        predictor: which routed it.
        given: the input.
        task: the right one.
        with_text: whether the text itself is noted, in the columns of the task. Otherwise its features are, in half
            precision; they serve only models over the same backbone.
    """
    route = predictor.route([given])[0]
    sent_to = list(predictor.system.tasks)[route.probabilities.index(route.confidence)]
    row: dict[str, Any] = {TASK: task, "sent_to": sent_to, "confidence": round(route.confidence, 4)}
    if with_text:
        parts = {"text": given.text, "context": given.context}
        for column, part in predictor.system.tasks[task].input_columns.items():
            if parts.get(part) is not None:
                row[predictor.system.tasks[task].names_of(column)[0]] = parts.pop(part)
        return row if given.instruction is None else {**row, "instruction": given.instruction}
    features = predictor.read([given], lambda _, trunk: trunk.features)[0]
    row["trunk"] = predictor.system.backbone.weight_hash
    row[FEATURES] = base64.b64encode(features.numpy().astype("<f2").tobytes()).decode("ascii")
    return row


def is_feedback(path: Path) -> bool:
    """Whether a file holds rows of feedback."""
    if not path.is_file() or not path.name.endswith((".jsonl", ".jsonl.gz")):
        return False
    first = next(iter(file_rows(path, Reading(), lambda _: None)), None)
    return first is not None and TASK in first[0]


def read_feedback(path: Path, system: System, task: str) -> tuple[list[tuple[Mapping[str, Any], str]], Tensor]:
    """Rows of a file of feedback for a task.

    Returns:
        Its rows with a text, each with its place; and ``(n, features)`` of those without.

    Raises:
        DataError: a row that is none, or one of another model.
    """
    with_text: list[tuple[Mapping[str, Any], str]] = []
    found: list[Tensor] = []
    for row, where in file_rows(path, Reading(), raise_it):
        if row.get(TASK) != task:
            continue
        if FEATURES not in row:
            with_text.append((row, where))
            continue
        if row.get("trunk") != system.backbone.weight_hash:
            raise DataError(f"{where}: was noted by a model over another backbone, so its features mean nothing here")
        found.append(_features(row[FEATURES], system.model.router.feature_size, where))
    return with_text, torch.stack(found) if found else torch.zeros(0, system.model.router.feature_size)


def _features(given: Any, size: int, where: str) -> Tensor:
    try:
        numbers = np.frombuffer(base64.b64decode(given, validate=True), dtype="<f2")
    except (binascii.Error, ValueError, TypeError):
        numbers = np.zeros(0)
    if len(numbers) != size or not np.isfinite(numbers).all():
        raise DataError(f"{where}: '{FEATURES}' should be {size} numbers as the server notes them")
    return torch.from_numpy(numbers.astype(np.float32))


class FeedbackFile:
    """A file to which rows are added.

    Attributes:
        rows: how many it has.
    """

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: JSON lines; made if it is not there.

        Raises:
            OSError: the file cannot be written.
        """
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
        with path.open("rb") as file:
            self.rows = sum(1 for _ in file)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row, which is on disk afterwards."""
        with self._path.open("ab") as file:
            file.write(json.dumps(row, ensure_ascii=True).encode() + b"\n")
        self.rows += 1
