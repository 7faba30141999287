"""Answer and route many examples for scoring, in batches and with progress.

Each process of a job works on a share of the examples, and receives the results of all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dynamo_mtl.distributed import join_shares, world
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import Prediction, Route, TextInput

logger = logging.getLogger(__name__)

CHUNK = 128
"""Inputs that are handed to the predictor at once."""
SILENCE = 5.0
"""Seconds between lines of progress."""


class InputProgress:
    """Logs the progress over many inputs, every few seconds and at the end."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done = label, total, 0
        self.began = self.last_logged = time.perf_counter()

    def advance(self, count: int) -> None:
        """Note that ``count`` more inputs are done."""
        self.done += count
        now = time.perf_counter()
        if self.done < self.total and now - self.last_logged < SILENCE:
            return
        self.last_logged = now
        rate = self.done / (now - self.began)
        left = (self.total - self.done) / rate
        logger.info("%s  %d/%d  %.1f inputs/s  %.0f s left", self.label, self.done, self.total, rate, left)


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
        tasks: for each input, the task whose head answers, and whose adapter is used if ``weights`` is None.
        weights: ``(inputs, adapters)`` mixing weights.
        label: name of this work in progress lines.
    """
    own = world().share(range(len(inputs)))
    predictions: list[Prediction] = []
    progress = InputProgress(label, len(own))
    for first in range(0, len(own), CHUNK):
        chunk = own[first : first + CHUNK]
        given = weights[chunk] if weights is not None else None
        predictions += predictor.predict([inputs[i] for i in chunk], [tasks[i] for i in chunk], given)
        progress.advance(len(chunk))
    return join_shares(predictions)


@dataclass(frozen=True)
class Routed:
    """How inputs were routed."""

    probabilities: np.ndarray
    """``(n, tasks)``."""
    truth: list[int]
    """``(n,)`` number of the adapter that each input belongs to."""
    familiarity: np.ndarray
    """``(n,)``."""
    rejected: list[bool]
    """``(n,)``."""


def route_inputs(predictor: Predictor, inputs: Sequence[RoutedInput], label: str = "routing") -> Routed:
    """Route many inputs, with progress. ``label`` names this work in progress lines."""
    own = world().share(inputs)
    routes: list[Route] = []
    progress = InputProgress(label, len(own))
    for first in range(0, len(own), CHUNK):
        chunk = own[first : first + CHUNK]
        routes += predictor.route([i.input for i in chunk])
        progress.advance(len(chunk))
    routes = join_shares(routes)
    return Routed(
        np.array([r.probabilities for r in routes]),
        [predictor.system.route_of(i.task) for i in inputs],
        np.array([r.familiarity for r in routes]),
        [r.is_rejected(predictor.calibration) for r in routes],
    )
