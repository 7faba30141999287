"""Rows that say which task an input should have gone to, with its text or only with what the router reads of it."""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamo_mtl.data.files import file_rows
from dynamo_mtl.data.text_files import Reading
from dynamo_mtl.errors import DataError
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.system import System
from dynamo_mtl.tasks.encoding import clean
from dynamo_mtl.tasks.task import Example, Task

logger = logging.getLogger(__name__)

SUFFIX = ".jsonl"
"""Ending of a file of feedback."""
TASK, INPUT, FEATURES, INSTRUCTED = "right_task", "input", "router_features", "instructed"
"""Keys of a row: the task that is right; the input; or the router's features in base64, and whether the input had an
instruction."""


@dataclass(frozen=True)
class Feedback:
    """What a file says of one task."""

    inputs: list[tuple[Example, str | None]]
    """Inputs whose text was kept, each with its instruction."""
    features: Tensor
    """``(n, features)`` of the others."""
    is_plain: Tensor
    """``(n,)`` whether each of the others had no instruction."""


def feedback_problem(task: Task, given: TextInput) -> str | None:
    """Why an input cannot belong to a task; None if it can."""
    if not given.text.strip():
        return "the text is empty"
    if task.needs_context and not (given.context or "").strip():
        return f"the task '{task.name}' {task.missing_context}"
    return None


def feedback_rows(
    predictor: Predictor, inputs: Sequence[TextInput], task: str, with_text: bool
) -> list[dict[str, Any]]:
    """What is noted of inputs whose right task a person has named.

    Args:
        predictor: which routes them.
        inputs: the inputs.
        task: the right one.
        with_text: whether the inputs themselves are noted. Otherwise their features are, in half precision; they serve
            only models over the same backbone.
    """
    names = list(predictor.system.tasks)
    rows: list[dict[str, Any]] = []
    for given, (route, features) in zip(inputs, predictor.route_with_features(inputs), strict=True):
        row: dict[str, Any] = {
            TASK: task,
            "sent_to": names[route.likeliest[0]],
            "confidence": round(route.confidence, 4),
        }
        if with_text:
            parts = {"text": given.text, "context": given.context, "instruction": given.instruction}
            row[INPUT] = {name: part for name, part in parts.items() if part is not None}
        else:
            row["trunk"] = predictor.system.backbone.weight_hash
            row[INSTRUCTED] = given.instruction is not None
            row[FEATURES] = base64.b64encode(features.numpy().astype("<f2").tobytes()).decode("ascii")
        rows.append(row)
    return rows


def is_feedback(path: Path) -> bool:
    """Whether a file holds rows of feedback."""
    if not path.is_file() or not path.name.endswith((SUFFIX, f"{SUFFIX}.gz")):
        return False
    first = next(iter(file_rows(path, Reading(), lambda _: None)), None)
    return first is not None and TASK in first[0]


def read_feedback(path: Path, system: System, task: str) -> Feedback:
    """What a file says of a task. Rows that cannot be used are left out, and counted in a warning.

    Raises:
        DataError: the file cannot be read.
    """
    inputs: list[tuple[Example, str | None]] = []
    features: list[Tensor] = []
    is_plain: list[bool] = []
    left_out: Counter[str] = Counter()
    for row, _ in file_rows(path, Reading(), lambda error: left_out.update([error.kind])):
        if row.get(TASK) != task:
            continue
        try:
            if FEATURES in row:
                features.append(_features(row, system))
                is_plain.append(not row.get(INSTRUCTED))
            else:
                inputs.append(_input(row, system.tasks[task]))
        except DataError as error:
            left_out.update([str(error)])
    if left_out:
        reasons = ", ".join(f"{count}: {why}" for why, count in left_out.items())
        logger.warning("%s: %d rows are left out: %s", path, left_out.total(), reasons)
    size = system.model.router.feature_size
    return Feedback(inputs, torch.stack(features) if features else torch.zeros(0, size), torch.tensor(is_plain).bool())


def _features(row: Mapping[str, Any], system: System) -> Tensor:
    """The features of a row. Raises ``DataError`` with the reason if they cannot be used."""
    if row.get("trunk") != system.backbone.weight_hash:
        raise DataError("noted by a model over another backbone")
    try:
        numbers = np.frombuffer(base64.b64decode(row[FEATURES], validate=True), dtype="<f2")
    except (binascii.Error, ValueError, TypeError):
        numbers = np.zeros(0)
    if len(numbers) != system.model.router.feature_size or not np.isfinite(numbers).all():
        raise DataError(f"'{FEATURES}' is damaged")
    return torch.from_numpy(numbers.astype(np.float32))


def _input(row: Mapping[str, Any], task: Task) -> tuple[Example, str | None]:
    """The input of a row. Raises ``DataError`` with the reason if it cannot be used."""
    given = row.get(INPUT)
    parts = given if isinstance(given, Mapping) else {}

    def part(name: str) -> str | None:
        return clean(parts[name]) if isinstance(parts.get(name), str) else None

    text, context, instruction = part("text"), part("context"), part("instruction")
    if text is None:
        raise DataError(f"neither '{INPUT}' nor '{FEATURES}'")
    problem = feedback_problem(task, TextInput(text, context))
    if problem is not None:
        raise DataError(problem)
    return Example(text, context, ""), instruction


class FeedbackFile:
    """A file to which rows are added."""

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
        self._size, self._rows = -1, 0

    @property
    def rows(self) -> int:
        """Number of rows. They are counted anew if the file is no longer as it was left."""
        size = self._path.stat().st_size if self._path.exists() else 0
        if size != self._size:
            self._size, self._rows = size, 0
            if size:
                with self._path.open("rb") as file:
                    self._rows = sum(1 for _ in file)
        return self._rows

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows, all at once. A line that was cut off is ended first."""
        count = self.rows
        text = b"".join(json.dumps(row, ensure_ascii=True).encode() + b"\n" for row in rows)
        with self._path.open("ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                text = text if file.read(1) == b"\n" else b"\n" + text
            file.write(text)
        self._size, self._rows = self._path.stat().st_size, count + len(rows)
