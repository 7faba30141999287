"""Data classes of requests and answers: inputs, routes, questions and predictions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from dynamo_mtl.inference.draft import Draft
from dynamo_mtl.model.calibration import Calibration
from dynamo_mtl.tasks.encoding import EncodedSource
from dynamo_mtl.tasks.generation_task import GenerationConfig
from dynamo_mtl.tasks.task import Answer

LIKELIEST, SURE = 3, 0.9
"""Most tasks that are named for an unsure input, and the probability at which no further one is."""


@dataclass(frozen=True)
class TextInput:
    """An input as a user sends it: a text, optionally with a context and an instruction."""

    text: str
    context: str | None = None
    instruction: str | None = None
    choices: Sequence[str] | None = None
    """The options to choose from."""


@dataclass(frozen=True)
class Route:
    """Where an input belongs."""

    probabilities: list[float]
    """The router's calibrated probability of every task, in the order of ``System.tasks``."""
    familiarity: float
    """Share of known inputs that are at least as unusual: near 0 for an input of no task."""

    @property
    def confidence(self) -> float:
        """Probability of the likeliest task."""
        return max(self.probabilities)

    def is_rejected(self, calibration: Calibration) -> bool:
        """Whether no task should answer."""
        return self.doubt(calibration) is not None

    def doubt(self, calibration: Calibration) -> Literal["unfamiliar", "unsure"] | None:
        """Why no task should answer: the input is unlike all known ones, or the confidence is too low; None if neither
        is so."""
        if self.familiarity < calibration.familiarity:
            return "unfamiliar"
        return "unsure" if self.confidence < calibration.threshold else None

    @property
    def likeliest(self) -> list[int]:
        """The likeliest tasks, best first: so many that one of them is right nine times of ten, but at most three."""
        order = sorted(range(len(self.probabilities)), key=lambda task: -self.probabilities[task])
        sums = itertools.accumulate(self.probabilities[task] for task in order)
        return order[: min(LIKELIEST, 1 + sum(total < SURE for total in sums))]


@dataclass(frozen=True)
class Prediction:
    """A routed answer. ``answer`` belongs to ``task``: its adapter, head and vocabulary made it."""

    task: str
    answer: Answer
    route: Route
    rejected: bool = False
    """Whether the input probably belongs to no task, so that the answer is a guess."""
    problem: str | None = None
    """Why the task cannot answer the input, which makes ``answer`` meaningless; None if it can."""
    truncated: Mapping[str, int] | None = None
    """Characters of the text or passage, and how many of them were read; None if all were."""


@dataclass(frozen=True)
class Question:
    """An encoded input, and how it is to be answered."""

    source: EncodedSource
    task: str | None = None
    """The task that must answer; the router chooses if None."""
    weights: Tensor | None = None
    """``(adapters,)`` mixing weights to use instead of one adapter or the router's choice."""
    top_k: int | None = None
    """How many adapters the router mixes; the model's own choice if None."""
    generation: Mapping[str, GenerationConfig] = field(default_factory=dict)
    """Task → decoding settings to use instead of its own."""
    unusable: Mapping[str, str] = field(default_factory=dict)
    """Task → why it cannot decode with the settings that were asked for."""

    @property
    def tokens(self) -> int:
        """Source tokens over all windows, and those of the options after each."""
        choices = sum(map(len, self.source.choice_ids))
        return sum(len(window.ids) + choices for window in self.source.windows)


@dataclass(frozen=True)
class Asked:
    """One input, and all that is asked about it."""

    questions: list[Question]
    """One for each task that must answer; a single one if only one answer is wanted. They share their source."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Task → why it cannot answer this input."""
    names: Sequence[str] | None = None
    """The tasks that were asked by name, in order; None if only one answer is wanted."""


@dataclass
class Pending:
    """A routed input on the way to its answer."""

    question: Question
    task: str
    route: Route
    rejected: bool
    answer: Answer | None = None
    """None while it is being written."""
    draft: Draft | None = None
    """What is being written, where the task writes text."""
