"""Scoring a system on labelled examples: answers and routing, in batches, with progress.

The processes of a job each work on a share of the examples; all of them get all results.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dynamo_mtl.inference.predictor import Prediction, Predictor, TextInput
from dynamo_mtl.processes import here, join_shares

logger = logging.getLogger(__name__)

CHUNK = 128
"""Inputs that are handed to the predictor at once."""


@dataclass(frozen=True)
class RoutedInput:
    """An input with the task that should answer it."""

    task: str
    input: TextInput


def predict_examples(
    predictor: Predictor, inputs: Sequence[TextInput], tasks: Sequence[str], weights: Tensor | None, label: str
) -> list[Prediction]:
    """Answers to many inputs, with progress.

    Args:
        predictor: the system.
        inputs: what to answer.
        tasks: whose head answers each, and whose adapter where there are no ``weights``.
        weights: ``(inputs, adapters)`` mixing weights.
        label: what progress lines call this.
    """
    own = here().share(range(len(inputs)))
    predictions: list[Prediction] = []
    began = time.perf_counter()
    for first in range(0, len(own), CHUNK):
        chunk = own[first : first + CHUNK]
        given = weights[chunk] if weights is not None else None
        predictions += predictor.predict([inputs[i] for i in chunk], [tasks[i] for i in chunk], given)
        done = first + len(chunk)
        rate = done / (time.perf_counter() - began)
        logger.info("%s  %d/%d  %.1f inputs/s  %.0f s left", label, done, len(own), rate, (len(own) - done) / rate)
    return join_shares(predictions)


def route_inputs(predictor: Predictor, inputs: Sequence[RoutedInput]) -> tuple[np.ndarray, list[int]]:
    """Routing probabilities ``(n, tasks)`` and true adapters ``(n,)`` of inputs."""
    own = here().share(inputs)
    rows: list[list[float]] = []
    for first in range(0, len(own), CHUNK * 4):
        rows += predictor.route([i.input for i in own[first : first + CHUNK * 4]])
    return np.array(join_shares(rows)), [predictor.system.route_of(i.task) for i in inputs]
