"""Classification: one of several labels for a text, such as a topic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.errors import DataError
from dynamo_mtl.metrics.classification import classification_scores
from dynamo_mtl.model.heads import ClassificationHead, Head, HeadConfig
from dynamo_mtl.model.lora import LoraConfig
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource, TaskView
from dynamo_mtl.tasks.task import Answer, Example, Task, TaskConfig
from dynamo_mtl.tasks.wordings import read_wordings


class ClassificationConfig(TaskConfig):
    """Labels are names, or numbers in the data; their names are what users read."""

    labels: list[str] = Field(min_length=2)
    """Names in the order of the numbers that the data may hold instead."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all labels (Szegedy et al. 2016, arXiv 1512.00567)."""
    classifier_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout in the head."""


class Classification(Task):
    """Single-label classification of a text."""

    type = "classification"
    Config = ClassificationConfig
    lora = LoraConfig(rank=16, alpha=32.0, target_modules=["query", "value"])
    column_names = {"text": ("text", "sentence", "content"), "label": ("label", "category", "class", "topic")}
    wordings = read_wordings("classification")
    main_metric = "accuracy"
    trivial_name = "majority label"
    hub_task = "text-classification"
    config: ClassificationConfig

    def read(self, row: Mapping[str, Any], where: str) -> Example:
        label = self.column(row, "label", where)
        names = self.config.labels
        if str(label) in names:  # a number may be a name too, such as one of five stars
            label = names.index(str(label))
        elif isinstance(label, str) and label.strip().isdecimal():
            label = int(label)
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(names):
            raise DataError(
                f"{where}: label {label!r} of task '{self.name}' is out of range; "
                f"use 0 to {len(names) - 1} or one of {', '.join(names)}",
                "label out of range",
            )
        return Example(self.text_column(row, "text", where), None, str(label))

    def output_names(self) -> list[str]:
        return self.config.labels

    def label(self, example: Example) -> str | None:
        return self.config.labels[int(example.target)]

    def head_config(self) -> HeadConfig:
        return HeadConfig("classification", labels=len(self.config.labels), dropout=self.config.classifier_dropout)

    def encode(self, example: Example, source: EncodedSource, route: int) -> EncodedExample:
        return replace(self.unanswered(source, route), labels={"label": [int(example.target)]})

    def _logits(self, head: Head, hidden: Tensor, view: TaskView) -> Tensor:
        assert isinstance(head, ClassificationHead)
        tokens = hidden[view.tokens]
        mask = view.mask[:, :, None].to(tokens.dtype)
        return head(tokens[:, 0], (tokens * mask).sum(dim=1) / mask.sum(dim=1))

    def losses(self, head: Head, hidden: Tensor, view: TaskView) -> Tensor:
        smoothing = self.config.label_smoothing if head.training else 0.0
        logits = self._logits(head, hidden, view)
        return F.cross_entropy(logits, view.labels["label"], reduction="none", label_smoothing=smoothing)

    def answers(self, head: Head, hidden: Tensor, view: TaskView, sources: Sequence[EncodedSource]) -> list[Answer]:
        probabilities = torch.softmax(self._logits(head, hidden, view), dim=-1).tolist()
        best = [max(range(len(row)), key=row.__getitem__) for row in probabilities]
        return [{"label": self.config.labels[b], "score": row[b]} for b, row in zip(best, probabilities, strict=True)]

    def score(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> dict[str, float]:
        # Another task of this type may have other labels; its answer is wrong here.
        numbers = {label: number for number, label in enumerate(self.config.labels)}
        predictions = [None if a is None else numbers.get(a["label"]) for a in answers]
        return classification_scores(predictions, [int(e.target) for e in examples])

    def trivial_answers(self, train: Sequence[Example], examples: Sequence[Example]) -> list[Answer]:
        majority = Counter(int(e.target) for e in train).most_common(1)[0][0]
        return [{"label": self.config.labels[majority], "score": 1.0}] * len(examples)
