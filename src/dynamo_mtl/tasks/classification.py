"""Classification: one of several labels for a text, such as a topic."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.errors import DataError
from dynamo_mtl.messages import shortened
from dynamo_mtl.metrics.classification import classification_scores
from dynamo_mtl.model.adapter import LoraConfig
from dynamo_mtl.model.heads import ClassificationHead, Head, HeadConfig
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource, TaskView
from dynamo_mtl.tasks.instruction_templates import read_instruction_templates
from dynamo_mtl.tasks.task import Answer, Example, Task
from dynamo_mtl.tasks.task_config import TaskConfig


class ClassificationConfig(TaskConfig):
    """Labels are names, or numbers in the data; their names are what users read."""

    labels: list[str] = Field(min_length=2)
    """Names in the order of the numbers that the data may hold instead; each once."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all labels (Szegedy et al. 2016, arXiv 1512.00567)."""
    classifier_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout in the head."""

    @field_validator("labels")
    @classmethod
    def _each_once(cls, labels: list[str]) -> list[str]:
        seen: dict[str, str] = {}
        for label in labels:
            name = label.strip()
            if not name or name in seen:
                what = f"'{name}' is there twice" if name else "a label is empty"
                raise ValueError(f"{what}; give each label once, without blanks around it")
            seen[name] = label
        return [label.strip() for label in labels]


class Classification(Task):
    """Single-label classification of a text."""

    type = "classification"
    Config = ClassificationConfig
    lora = LoraConfig(rank=16, alpha=32.0, target_modules=["query", "value"])
    column_names = {"text": ("text", "sentence", "content"), "label": ("label", "category", "class", "topic")}
    instruction_templates = read_instruction_templates("classification")
    main_metric = "accuracy"
    trivial_name = "majority label"
    hub_task = "text-classification"
    config: ClassificationConfig

    def read(self, row: Mapping[str, Any], where: str) -> Example:
        label = self.column(row, "label", where)
        number = self._number(label)
        if number is None:
            shown = f"'{label.strip()}'" if isinstance(label, str) else repr(label)
            if shown == "''":
                raise DataError(f"{where}: the label of task '{self.name}' is empty", "no value in 'label'")
            raise DataError(
                f"{where}: label {shown:.80} of task '{self.name}' is out of range; "
                f"use 0 to {len(self.config.labels) - 1} or one of {shortened(self.config.labels)}",
                "label out of range",
            )
        return Example(self.text_column(row, "text", where), None, str(number))

    def _number(self, label: Any) -> int | None:
        """The number of a label that is written as its name, in another case, or as a whole number."""
        names = self.config.labels
        written = number_as_written(label)
        if written in names:  # a number may be a name too, such as one of five stars
            return names.index(written)
        folded = [number for number, name in enumerate(names) if name.casefold() == written.casefold()]
        if len(folded) == 1:
            return folded[0]
        if written.casefold() in ("true", "false") and len(names) == 2:
            return int(written.casefold() == "true")
        if written.isdecimal() and len(written) < 10 and int(written) < len(names):
            return int(written)
        return None

    def reading_note(self, row: Mapping[str, Any], example: Example) -> str | None:
        given = str(self.column(row, "label", "")).strip()
        name = self.config.labels[int(example.target)]
        return (
            f"label '{given:.40}' is read as '{name}'" if given.casefold() == name.casefold() != given != name else None
        )

    @property
    def subject(self) -> str:
        """Also its labels, where they are few words."""
        labels = ", ".join(self.config.labels)
        return super().subject if self.config.description or len(labels) > 60 else f"{super().subject}: {labels}"

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


def number_as_written(value: Any) -> str:
    """A cell as its label: without blanks around it, and ``1.0`` as ``1``, which is what a spreadsheet makes of it."""
    text = str(value).strip()
    return text[:-2] if re.fullmatch(r"-?\d{1,15}\.0", text) else text
