"""Several labels for a text, or none: each label is a question of its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.data.columns import MARKS
from dynamo_mtl.errors import DataError
from dynamo_mtl.messages import shortened
from dynamo_mtl.metrics.classification import set_interval, set_scores
from dynamo_mtl.model.calibration import AnswerCalibration
from dynamo_mtl.model.heads import Head, HeadConfig
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource, TaskView
from dynamo_mtl.tasks.instruction_templates import read_instruction_templates
from dynamo_mtl.tasks.label_columns import find_label_lists, texts_beside
from dynamo_mtl.tasks.labelled_text import LabelledText, LabelledTextConfig
from dynamo_mtl.tasks.recognition import Guess, Table
from dynamo_mtl.tasks.task import Answer, Example
from dynamo_mtl.tasks.text_task import TEXT_NAMES

ENOUGH = 20
"""Fewest validation rows with a label from which a threshold of its own is fitted."""


class MultiLabelConfig(LabelledTextConfig):
    """Several labels for a text."""

    labels: list[str] = Field(min_length=2)
    """Names of the labels. The data has a list of them in the column ``labels``, or a column of 0 and 1 for each."""
    thresholds: Literal["per_label", "one"] | Annotated[float, Field(ge=0, le=1)] = "per_label"
    """The probability from which a label is given: one for each label, or one for all, found on validation data; or
    the number itself. A label that is rare in the validation data has the common one in any case."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target of each label that is moved to one half (Szegedy et al. 2016, arXiv 1512.00567)."""
    class_weights: Literal["balanced"] | list[PositiveFloat] | None = None
    """How much an example that has a label counts for that label, where one that lacks it counts 1. ``balanced`` is the
    number of examples that lack it divided by the number of those that have it."""


class MultiLabel(LabelledText):
    """A yes or no for each of the labels."""

    type = "multi_label"
    Config = MultiLabelConfig
    column_names = {"text": TEXT_NAMES, "labels": ("labels", "label", "categories", "tags", "topics")}
    instruction_templates = read_instruction_templates("multi_label")
    main_metric = "micro_f1"
    trivial_name = "the labels that at least half of the training data has, or else the commonest"
    answer_key = "labels"
    answer_type = object
    decides = "labels"
    answer_parts = {}
    problem_type = "multi_label_classification"
    recognition_rank = 5
    config: MultiLabelConfig

    @classmethod
    def recognise(cls, table: Table, name: str) -> Guess | None:
        """Recognise a column of lists of labels, or columns of 0 and 1, beside one of texts."""
        found = find_label_lists(table)
        if found is None:
            return None
        texts = texts_beside(table, found.column or "", name, found.columns)
        own: dict[str, str] = {**dict(zip(("text", "text_pair"), texts, strict=False))}
        if found.column is not None:
            own["labels"] = found.column
        pairs: dict[str, Any] = {"text_pair": True} if len(texts) > 1 else {}
        return cls.guess(table, name, found.why, own, labels=found.labels, **pairs)

    def read(self, row: Mapping[str, Any], where: str) -> Example:
        return Example(*self.texts(row, where), json.dumps(sorted(self._numbers(row, where))))

    def _numbers(self, row: Mapping[str, Any], where: str) -> set[int]:
        """Numbers of the labels of a row."""
        names = self.config.labels
        has_list = "labels" in self.config.columns or any(name in row for name in self.names_of("labels"))
        if not has_list and all(name in row for name in names):
            flags = {name: str(row[name]).strip().casefold().removesuffix(".0") for name in names}
            odd = next((name for name, flag in flags.items() if flag not in ("0", "1", "false", "true")), None)
            if odd is not None:
                raise DataError(
                    f"{where}: column '{odd}' of task '{self.name}' should be 0 or 1, found {row[odd]!r:.40}",
                    f"'{odd}' is not 0 or 1",
                )
            return {number for number, flag in enumerate(flags.values()) if flag in ("1", "true")}
        given = self._parts(self.optional_value(row, "labels", where))
        exact = {name: number for number, name in enumerate(names)}
        folded = {name.casefold(): number for number, name in enumerate(names)}
        written = [str(one).strip() for one in given]
        numbers = [exact.get(one, folded.get(one.casefold())) for one in written]
        unknown = next((one for one, number in zip(written, numbers, strict=True) if number is None), None)
        if unknown is not None:
            raise DataError(
                f"{where}: '{unknown}' is no label of task '{self.name}'; its labels are {shortened(names)}",
                "a label that is not in the set",
            )
        return {number for number in numbers if number is not None}

    def _parts(self, given: Any) -> list[Any]:
        """The single labels of a cell: a list, JSON of one, or labels with marks between them."""
        if given is None or isinstance(given, list):
            return given or []
        text = str(given).strip()
        if text.startswith("["):
            try:
                return list(json.loads(text))
            except (ValueError, RecursionError):
                text = text.strip("[]").replace("'", "")  # a list as Python writes it
        if text.casefold() in {name.casefold() for name in self.config.labels}:
            return [text]
        mark = next((mark for mark in MARKS if mark in text), ";")
        return [part for part in text.split(mark) if part.strip()]

    def label(self, example: Example) -> str | None:
        """The first of its labels, so that a held-out share has some of each; None of an empty set."""
        numbers = json.loads(example.target)
        return self.config.labels[numbers[0]] if numbers else None

    def labels_of(self, example: Example) -> Sequence[str]:
        return [self.config.labels[number] for number in json.loads(example.target)]

    def confusion(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> dict[str, dict[str, int]]:
        return {}  # a set of labels is not confused with one other label

    def head_config(self) -> HeadConfig:
        return self.text_head(len(self.config.labels))

    def study(self, head: Head, examples: Iterable[Example]) -> None:
        if self.config.class_weights != "balanced":
            return
        counts: Counter[int] = Counter()
        rows = 0
        for example in examples:
            rows += 1
            counts.update(json.loads(example.target))
        labels = range(len(self.config.labels))
        self._weights = torch.tensor([max(1, rows - counts[one]) / max(1, counts[one]) for one in labels])

    def encode(self, example: Example, source: EncodedSource, route: int) -> EncodedExample:
        given = set(json.loads(example.target))
        row = [float(number in given) for number in range(len(self.config.labels))]
        return replace(self.unanswered(source, route), labels={"labels": [row]})

    def losses(self, head: Head, hidden: Tensor, view: TaskView) -> Tensor:
        smoothing = self.config.label_smoothing if head.training else 0.0
        target = view.labels["labels"] * (1 - smoothing) + smoothing / 2
        logits = self.outputs(head, hidden, view)
        weights = self.weights_like(logits)
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=weights)
        return losses.mean(dim=1)

    def evidence(self, head: Head, hidden: Tensor, view: TaskView) -> tuple[Tensor, Tensor]:
        logits = self.outputs(head, hidden, view).flatten()
        return torch.stack([torch.zeros_like(logits), logits], dim=1), view.labels["labels"].flatten().long()

    def calibrate(self, logits: Tensor, truth: Tensor) -> AnswerCalibration:
        """Fit the temperature, then for each label the threshold with the best F1 on the same rows."""
        found = super().calibrate(logits, truth)
        count = len(self.config.labels)
        probabilities = torch.sigmoid(logits[:, 1].double() / found.temperature).reshape(-1, count)
        has = truth.reshape(-1, count).bool()
        common = best_threshold(probabilities.flatten(), has.flatten())
        own = [
            best_threshold(probabilities[:, label], has[:, label])
            if self.config.thresholds == "per_label" and int(has[:, label].sum()) >= ENOUGH
            else common
            for label in range(count)
        ]
        return replace(found, thresholds=own)

    def answers(self, head: Head, hidden: Tensor, view: TaskView, sources: Sequence[EncodedSource]) -> list[Answer]:
        logits = self.outputs(head, hidden, view) / self.calibration.temperature
        return [self._answer(row) for row in torch.sigmoid(logits).tolist()]

    def _answer(self, probabilities: Sequence[float]) -> Answer:
        by_label = dict(zip(self.config.labels, probabilities, strict=True))
        chosen = self.config.thresholds
        least = [chosen if isinstance(chosen, float) else 0.5] * len(by_label)
        if not isinstance(chosen, float) and self.calibration.thresholds:
            least = self.calibration.thresholds
        given = [label for (label, share), own in zip(by_label.items(), least, strict=True) if share >= own]
        return {"labels": given, "probabilities": by_label}

    def score(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> dict[str, float]:
        return set_scores(*self._sets(answers, examples), len(self.config.labels))

    def interval(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> tuple[float, float]:
        return set_interval(*self._sets(answers, examples))

    def _sets(
        self, answers: Sequence[Answer | None], examples: Sequence[Example]
    ) -> tuple[list[set[int] | None], list[set[int]]]:
        numbers = {label: number for number, label in enumerate(self.config.labels)}
        given = [None if a is None else {numbers.get(label, -1) for label in a["labels"]} for a in answers]
        return given, [set(json.loads(example.target)) for example in examples]

    def trivial_answers(self, train: Sequence[Example], examples: Sequence[Example]) -> list[Answer]:
        counts = Counter(number for example in train for number in json.loads(example.target))
        common = {number for number, count in counts.items() if 2 * count >= len(train)}
        common = common or {number for number, _ in counts.most_common(1)}
        by_label = {label: float(number in common) for number, label in enumerate(self.config.labels)}
        given = [label for label, share in by_label.items() if share]
        return [{"labels": given, "probabilities": by_label}] * len(examples)


def best_threshold(probabilities: Tensor, has: Tensor) -> float:
    """The probability from which a label is best given, by F1 = 2 · right / (given + expected); both ``(n,)``.

    It lies halfway between two of the probabilities. One half if the label never occurs.
    """
    if not bool(has.any()):
        return 0.5
    order = probabilities.argsort(descending=True)
    known, right = probabilities[order], has[order].double().cumsum(0)
    f1 = 2 * right / (torch.arange(1, len(order) + 1) + right[-1])
    below = torch.cat([known[1:], torch.zeros(1, dtype=known.dtype)])
    place = int(f1.masked_fill(known == below, -1.0).argmax())  # equal probabilities cannot be told apart
    return float((known[place] + below[place]) / 2)
