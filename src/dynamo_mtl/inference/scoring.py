"""Scoring a system on labelled examples: answers and routing, in batches, with progress.

The processes of a job each work on a share of the examples; all of them get all results.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynamo_mtl.inference.predictor import Prediction, Predictor, TextInput
from dynamo_mtl.processes import here, join_shares
from dynamo_mtl.tasks.task import Answer, Example

logger = logging.getLogger(__name__)

CHUNK = 128
"""Inputs that are handed to the predictor at once."""


@dataclass(frozen=True)
class RoutedInput:
    """An input with the task that should answer it."""

    task: str
    input: TextInput


def predict_examples(
    predictor: Predictor, task: str, examples: Sequence[Example], hint: bool, instruction: str | None, label: str
) -> list[Prediction]:
    """Answers to a task's examples.

    Args:
        predictor: the system.
        task: the examples' task.
        examples: what to answer.
        hint: tell the system the task (oracle routing).
        instruction: put in front of every text.
        label: what progress lines call this.
    """
    own = here().share(examples)
    predictions: list[Prediction] = []
    began = time.perf_counter()
    for first in range(0, len(own), CHUNK):
        chunk = [TextInput(e.text, e.context, instruction) for e in own[first : first + CHUNK]]
        predictions += predictor.predict(chunk, [task] * len(chunk) if hint else None)
        done = first + len(chunk)
        rate = done / (time.perf_counter() - began)
        logger.info("%s  %d/%d  %.1f inputs/s  %.0f s left", label, done, len(own), rate, (len(own) - done) / rate)
    return join_shares(predictions)


def typed_answers(predictor: Predictor, task: str, predictions: Sequence[Prediction]) -> list[Answer | None]:
    """The predictions as answers to ``task``: None where another type of task answered."""
    types = {name: t.type for name, t in predictor.system.tasks.items()}
    return [p.answer if types[p.task] == types[task] else None for p in predictions]


def route_inputs(predictor: Predictor, inputs: Sequence[RoutedInput]) -> tuple[np.ndarray, list[int]]:
    """Routing probabilities ``(n, tasks)`` and true adapters ``(n,)`` of inputs."""
    own = here().share(inputs)
    rows: list[list[float]] = []
    for first in range(0, len(own), CHUNK * 4):
        rows += predictor.route([i.input for i in own[first : first + CHUNK * 4]])
    return np.array(join_shares(rows)), [predictor.system.route_of(i.task) for i in inputs]
