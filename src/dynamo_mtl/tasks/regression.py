"""Scores of a text or of a pair of texts, such as how similar two sentences are, or how many stars a review gives."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.errors import DataError
from dynamo_mtl.metrics.regression import regression_scores, spearman_interval
from dynamo_mtl.model.heads import Head, HeadConfig, RegressionHead
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource, TaskView
from dynamo_mtl.tasks.instruction_templates import read_instruction_templates
from dynamo_mtl.tasks.label_columns import texts_beside
from dynamo_mtl.tasks.recognition import Guess, Table
from dynamo_mtl.tasks.task import Answer, Example
from dynamo_mtl.tasks.text_task import TEXT_NAMES, TextTask, TextTaskConfig

MOST_LEVELS = 100
SCORE_NAMES = ("score", "rating", "stars", "similarity", "value", "grade")


class RegressionConfig(TextTaskConfig):
    """A score with its range."""

    score_range: list[float] = Field(min_length=2, max_length=2)
    """Lowest and highest score. Scores of the data must lie between them, and so do the answers."""
    ordinal: bool = False
    """Whether scores are levels, the whole numbers of the range. The answer then has a probability for each level
    (CORN, Shi et al. 2021, arXiv 2111.08851)."""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        low, high = self.score_range
        if not low < high:
            raise ValueError(f"score_range should be the lowest and the highest score, found {low:g} and {high:g}")
        levels = high - low + 1
        if self.ordinal and (low != int(low) or high != int(high) or not 3 <= levels <= MOST_LEVELS):
            raise ValueError(
                f"score_range of ordinal scores should be whole numbers with 3 to {MOST_LEVELS} levels, found "
                f"{low:g} to {high:g}"
            )
        return self


class Regression(TextTask):
    """A number for a text, or for a pair of texts."""

    type = "regression"
    Config = RegressionConfig
    column_names = {"text": TEXT_NAMES, "score": SCORE_NAMES}
    instruction_templates = read_instruction_templates("regression")
    main_metric = "spearman"
    trivial_name = "mean score"
    answer_key = "value"
    answer_type = float
    problem_type = "regression"
    recognition_rank = 6
    config: RegressionConfig

    def __init__(self, name: str, config: RegressionConfig) -> None:
        super().__init__(name, config)
        low, high = config.score_range
        self.levels = [int(low) + step for step in range(int(high - low) + 1)] if config.ordinal else []
        self.decides = "level" if config.ordinal else "value"
        self.answer_parts = {"level": str, "score": float} if config.ordinal else {}
        if config.ordinal:
            self.published_head = None

    @classmethod
    def recognise(cls, table: Table, name: str) -> Guess | None:
        """Recognise a column of scores beside texts, where no column has labels."""
        columns = table.columns.values()
        if "label" in table.chosen or (any(c.is_label for c in columns) and "score" not in table.chosen):
            return None
        scores = [c for c in columns if c.is_score or c.name == table.chosen.get("score")]
        named = [c for c in scores if c.name.strip().casefold() in SCORE_NAMES]
        if not scores or not any(column.is_text for column in columns):
            return None
        if len(scores) > 1 and len(named) != 1 and "score" not in table.chosen:
            each = " or ".join(f"'{column.name}'" for column in scores)
            raise table.ask(f"which column is the score, {each}? say --column {name}.score=NAME")
        chosen = next((c for c in scores if c.name == table.chosen.get("score")), (named or scores)[0])
        texts = texts_beside(table, chosen.name, name, [c.name for c in scores])
        values = [number for number in map(_number, chosen.counts) if number is not None]
        if not values:
            raise table.ask(f"'{chosen.name}' is to be the score, and holds no numbers")
        low, high = math.floor(min(values)), math.ceil(max(values))
        pairs: dict[str, Any] = {"text_pair": True} if len(texts) > 1 else {}
        found = {**dict(zip(("text", "text_pair"), texts, strict=False)), "score": chosen.name}
        why = f"'{chosen.name}' has numbers from {min(values):g} to {max(values):g}"
        guess = cls.guess(table, name, why, found, score_range=[low, max(high, low + 1)], **pairs)
        guess.notes.append("score_range is where the scores of the file lie; give the range that they can have")
        guess.missing = chosen.empty
        return guess

    def read(self, row: Mapping[str, Any], where: str) -> Example:
        given = self.column(row, "score", where)
        score = None if isinstance(given, bool) else _number(given)
        if score is None:
            raise DataError(f"{where}: the score {given!r:.40} of task '{self.name}' is not a number", "not a number")
        low, high = self.config.score_range
        if not low <= score <= high:
            raise DataError(
                f"{where}: the score {score:g} of task '{self.name}' is out of range; "
                f"use {low:g} to {high:g}, or change tasks.{self.name}.score_range",
                "score out of range",
            )
        if self.levels and score != int(score):
            raise DataError(
                f"{where}: the score {score:g} of task '{self.name}' is no level; ordinal scores are whole "
                f"numbers from {low:g} to {high:g}",
                "score that is no level",
            )
        return Example(*self.texts(row, where), json.dumps(score))

    def output_names(self) -> list[str]:
        return [str(level) for level in self.levels] or ["score"]

    def label(self, example: Example) -> str | None:
        return f"{json.loads(example.target):g}" if self.levels else None

    def confusion(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> dict[str, dict[str, int]]:
        levels = [None if a is None or "level" not in a else {"label": a["level"]} for a in answers]
        return super().confusion(levels, examples)

    def head_config(self) -> HeadConfig:
        return self.text_head(len(self.levels) - 1) if self.levels else self.text_head(1, "regression")

    def study(self, head: Head, examples: Iterable[Example]) -> None:
        """Set the mean and the spread that scores are standardised with, unless the head has learned with some."""
        if not isinstance(head, RegressionHead) or head.is_fitted:
            return
        scores = [json.loads(example.target) for example in examples]
        head.mean.fill_(statistics.fmean(scores))
        head.spread.fill_(statistics.pstdev(scores) or 1.0)

    def encode(self, example: Example, source: EncodedSource, route: int) -> EncodedExample:
        return replace(self.unanswered(source, route), labels={"score": [float(json.loads(example.target))]})

    def losses(self, head: Head, hidden: Tensor, view: TaskView) -> Tensor:
        outputs, scores = self.outputs(head, hidden, view), view.labels["score"]
        if self.levels:
            return ordinal_losses(outputs, scores - self.levels[0])
        assert isinstance(head, RegressionHead)
        return F.mse_loss(outputs[:, 0], (scores - head.mean) / head.spread.clamp_min(1e-6), reduction="none")

    def evidence(self, head: Head, hidden: Tensor, view: TaskView) -> tuple[Tensor, Tensor] | None:
        if not self.levels:
            return None
        logits = level_log_probabilities(self.outputs(head, hidden, view))
        return logits, view.labels["score"].long() - self.levels[0]

    def answers(self, head: Head, hidden: Tensor, view: TaskView, sources: Sequence[EncodedSource]) -> list[Answer]:
        outputs = self.outputs(head, hidden, view)
        if self.levels:
            logits = level_log_probabilities(outputs) / self.calibration.temperature
            return [self._answer(row) for row in torch.softmax(logits, dim=1).tolist()]
        assert isinstance(head, RegressionHead)
        low, high = self.config.score_range
        return [{"value": value} for value in head.values(outputs[:, 0]).clamp(low, high).tolist()]

    def _answer(self, probabilities: Sequence[float]) -> Answer:
        by_level = dict(zip(map(str, self.levels), probabilities, strict=True))
        level = max(by_level, key=by_level.__getitem__)
        value = math.fsum(own * share for own, share in zip(self.levels, probabilities, strict=True))
        return {"value": value, "level": level, "score": by_level[level], "probabilities": by_level}

    def exported(self, outputs: Tensor) -> Tensor:
        return super().exported(level_log_probabilities(outputs)) if self.levels else outputs

    def score(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> dict[str, float]:
        expected = [json.loads(example.target) for example in examples]
        found = regression_scores([None if a is None else a["value"] for a in answers], expected)
        if not self.levels:
            return found
        levels = [None if a is None else a.get("level") for a in answers]  # of another task, which has none
        right = sum(level == f"{score:g}" for level, score in zip(levels, expected, strict=True))
        return {**found, "accuracy": right / len(expected)}

    def interval(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> tuple[float, float]:
        values = [None if a is None else a["value"] for a in answers]
        return spearman_interval(values, [json.loads(example.target) for example in examples])

    def trivial_answers(self, train: Sequence[Example], examples: Sequence[Example]) -> list[Answer]:
        scores = [json.loads(example.target) for example in train]
        if not self.levels:
            return [{"value": statistics.fmean(scores)}] * len(examples)
        counts = Counter(scores)
        return [self._answer([counts[level] / len(scores) for level in self.levels])] * len(examples)


def _number(given: Any) -> float | None:
    """A score as tables write it; None if it is no number."""
    try:
        score = float(str(given).strip().replace(",", "."))
    except ValueError:
        return None
    return None if math.isnan(score) else score


def ordinal_losses(outputs: Tensor, levels: Tensor) -> Tensor:
    """Losses ``(n,)`` of CORN (Shi et al. 2021, arXiv 2111.08851, equation 6), as a mean over the thresholds.

    Args:
        outputs: ``(n, levels - 1)``: output k is the logit of being above level k if the level is at least k.
        levels: ``(n,)`` from 0.
    """
    thresholds = torch.arange(outputs.shape[1], device=outputs.device)
    losses = F.binary_cross_entropy_with_logits(outputs, (levels[:, None] > thresholds).to(outputs), reduction="none")
    return (losses * (levels[:, None] >= thresholds)).sum(dim=1) / outputs.shape[1]


def level_log_probabilities(outputs: Tensor) -> Tensor:
    """Log-probabilities ``(n, levels)`` by the chain rule, from the outputs that ``ordinal_losses`` trains."""
    zero = torch.zeros_like(outputs[:, :1])
    above = torch.cat([zero, F.logsigmoid(outputs).cumsum(dim=1)], dim=1)  # of being at least at each level
    return above + torch.cat([F.logsigmoid(-outputs), zero], dim=1)
