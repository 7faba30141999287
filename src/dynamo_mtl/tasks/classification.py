"""Classification: one of several labels for a text, such as a topic."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.data.columns import number_as_written
from dynamo_mtl.errors import DataError
from dynamo_mtl.messages import shortened
from dynamo_mtl.metrics.classification import classification_scores, kept_scores
from dynamo_mtl.model.calibration import AnswerCalibration, least_confidence
from dynamo_mtl.model.heads import Head, HeadConfig
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource, TaskView
from dynamo_mtl.tasks.instruction_templates import read_instruction_templates
from dynamo_mtl.tasks.label_columns import LABEL_NAMES, only, texts_beside
from dynamo_mtl.tasks.labelled_text import LabelledText, LabelledTextConfig
from dynamo_mtl.tasks.recognition import Guess, Table
from dynamo_mtl.tasks.task import Answer, Example
from dynamo_mtl.tasks.text_task import TEXT_NAMES, TextTask

SUM_TOLERANCE = 1e-3
"""How far the sum of given probabilities may be from 1, which rounding explains."""


class ClassificationConfig(LabelledTextConfig):
    """Labels are names, or numbers in the data; their names are what users read."""

    labels: list[str] = Field(min_length=2)
    """Names in the order of the numbers that the data may hold instead; each once."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all labels (Szegedy et al. 2016, arXiv 1512.00567)."""
    class_weights: Literal["balanced"] | list[PositiveFloat] | None = None
    """How much an example of each label counts in the loss. ``balanced`` is the number of examples divided by the
    number of labels and by how often the label occurs."""
    soft_labels: bool = False
    """Whether examples have a probability for each label, in the column ``probabilities``, instead of one label."""
    precision: float | None = Field(default=None, gt=0, lt=1)
    """Share of right answers that is wanted. Where the confidence is below the one that reaches it on validation rows,
    no label is given, and the best guess stands beside it."""


class Classification(LabelledText):
    """Single-label classification of a text, or of a pair of texts."""

    type = "classification"
    Config = ClassificationConfig
    column_names = {"text": TEXT_NAMES, "label": ("label", "category", "class", "topic")}
    optional_columns = {
        **TextTask.optional_columns,
        "probabilities": ("probabilities", "soft_label", "soft_labels"),
    }
    instruction_templates = read_instruction_templates("classification")
    main_metric = "accuracy"
    trivial_name = "majority label"
    problem_type = "single_label_classification"
    decides = "label"
    recognition_rank = 8
    config: ClassificationConfig

    def __init__(self, name: str, config: ClassificationConfig) -> None:
        super().__init__(name, config)
        self.answer_parts = {"score": float, **({"best_guess": str} if config.precision is not None else {})}

    @classmethod
    def recognise(cls, table: Table, name: str) -> Guess | None:
        """Recognise a column of texts beside one with few different values."""
        labels = [column for column in table.columns.values() if column.is_label]
        if not labels and "label" not in table.chosen:
            return None
        chosen = table.chosen.get("label") or only(labels) or table.named(LABEL_NAMES)
        if chosen is None or (chosen not in table.chosen.values() and chosen not in [c.name for c in labels]):
            each = " or ".join(f"{c.name} ({shortened(sorted(c.counts), 4)})" for c in labels)
            raise table.ask(
                f"which column is the label, {each}? say --column {name}.label=NAME, and name a file twice, with a "
                "copy under another name, to learn several"
            )
        texts = texts_beside(table, chosen, name)
        guess = cls._guess_labels(table, name, texts, chosen)
        others = [column.name for column in labels if column.name not in (chosen, *texts)]
        if guess is not None and others:
            guess.notes.append(f"'{chosen}' is taken as the label; it could also be {', '.join(others)}")
        return guess

    @classmethod
    def _guess_labels(cls, table: Table, name: str, texts: Sequence[str], label: str) -> Guess | None:
        column = table.columns[label]
        labels = [spellings[0] for spellings in column.folded.values()]
        labels.sort(key=lambda one: (not one.isdecimal(), int(one) if one.isdecimal() else 0, one))
        is_numbers = labels == [str(number) for number in range(len(labels))]
        if not cls.fits(labels, is_numbers, name):
            return None
        settings: dict[str, Any] = {} if is_numbers else {"labels": labels}
        if is_numbers and cls.Config.model_fields["labels"].is_required():
            settings["labels"] = [f"class {number}" for number in labels]
        if len(texts) > 1:
            settings["text_pair"] = True
        beside = " and ".join(f"'{text}'" for text in texts)
        why = f"'{label}' has {len(labels)} values that come again, beside the texts of {beside}"
        found = {**dict(zip(("text", "text_pair"), texts, strict=False)), "label": label}
        guess = cls.guess(table, name, why, found, **settings)
        if len(texts) > 1:
            guess.notes.append(f"the label is taken to be about both texts; for one say --column {name}.text=NAME")
        guess.missing = column.empty
        merged = [" and ".join(map(repr, spellings)) for spellings in column.folded.values() if len(spellings) > 1]
        if merged:
            guess.notes.append(f"one label in several spellings: {shortened(merged, 5)}")
        if column.empty:
            guess.notes.append(f"{column.empty} rows have no label and are left out (data.bad_rows: skip)")
        unused = [one for one in table.columns if one not in (*texts, label)]
        if unused:
            guess.notes.append(f"not used: {shortened(unused, 6)}")
        return guess

    @classmethod
    def fits(cls, labels: Sequence[str], is_numbers: bool, name: str) -> bool:
        """Whether labels suit this type. Any do, unless a subclass says otherwise."""
        return True

    def read(self, row: Mapping[str, Any], where: str) -> Example:
        if self.config.soft_labels:
            shares = self._shares(self.column(row, "probabilities", where), where)
            return Example(*self.texts(row, where), json.dumps(shares))
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
        return Example(*self.texts(row, where), str(number))

    def _shares(self, given: Any, where: str) -> list[float]:
        """Read the probability of each label: a list in their order, or a mapping of names, also as JSON in a cell."""
        found = given
        with suppress(ValueError):
            found = json.loads(given) if isinstance(given, str) else given
        if isinstance(found, Mapping) and {self._number(label) for label in found} <= set(
            range(len(self.config.labels))
        ):
            named = {self._number(label): share for label, share in found.items()}
            found = [named.get(number, 0.0) for number in range(len(self.config.labels))]
        is_list = isinstance(found, list) and len(found) == len(self.config.labels)
        if not is_list or not all(type(share) in (int, float) and share >= 0 for share in found):
            raise DataError(
                f"{where}: probabilities of task '{self.name}' should be a number for each of "
                f"{shortened(self.config.labels)}, found {given!r:.80}",
                "probabilities of another form",
            )
        total = math.fsum(found)
        if not abs(total - 1) < SUM_TOLERANCE:
            raise DataError(
                f"{where}: the probabilities of task '{self.name}' sum to {total:.6g}; they should sum to 1",
                "probabilities that do not sum to 1",
            )
        return [share / total for share in found]

    def _number(self, label: Any) -> int | None:
        """Number of a label, written as its name (in any case), as a number, or as true or false if there are two."""
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
        if self.config.soft_labels:
            return None
        given = str(self.column(row, "label", "")).strip()
        name = self.config.labels[int(example.target)]
        return (
            f"label '{given:.40}' is read as '{name}'" if given.casefold() == name.casefold() != given != name else None
        )

    @property
    def subject(self) -> str:
        """As for every task, with the labels added if they are short and there is no description."""
        labels = ", ".join(self.config.labels)
        return super().subject if self.config.description or len(labels) > 60 else f"{super().subject}: {labels}"

    def label(self, example: Example) -> str | None:
        return self.config.labels[self._expected(example)]

    def _expected(self, example: Example) -> int:
        """Number of the label, or of the most probable one."""
        found = json.loads(example.target)
        return max(range(len(found)), key=found.__getitem__) if isinstance(found, list) else found

    def head_config(self) -> HeadConfig:
        return self.text_head(len(self.config.labels))

    def study(self, head: Head, examples: Iterable[Example]) -> None:
        if self.config.class_weights == "balanced":
            counts = Counter(self._expected(example) for example in examples)
            labels = range(len(self.config.labels))
            self._weights = torch.tensor([counts.total() / (len(labels) * max(1, counts[one])) for one in labels])

    def encode(self, example: Example, source: EncodedSource, route: int) -> EncodedExample:
        return replace(self.unanswered(source, route), labels={"label": [json.loads(example.target)]})

    def losses(self, head: Head, hidden: Tensor, view: TaskView) -> Tensor:
        smoothing = self.config.label_smoothing if head.training else 0.0
        logits = self.outputs(head, hidden, view)
        weights = self.weights_like(logits)
        return F.cross_entropy(logits, view.labels["label"], weights, reduction="none", label_smoothing=smoothing)

    def evidence(self, head: Head, hidden: Tensor, view: TaskView) -> tuple[Tensor, Tensor]:
        truth = view.labels["label"]
        return self.outputs(head, hidden, view), truth.argmax(dim=1) if truth.dim() > 1 else truth

    def calibrate(self, logits: Tensor, truth: Tensor) -> AnswerCalibration:
        found = super().calibrate(logits, truth)
        if self.config.precision is None:
            return found
        confidence, chosen = torch.softmax(logits.double() / found.temperature, dim=1).max(dim=1)
        return replace(found, abstain_below=least_confidence(confidence, chosen == truth, self.config.precision))

    def answers(self, head: Head, hidden: Tensor, view: TaskView, sources: Sequence[EncodedSource]) -> list[Answer]:
        logits = self.outputs(head, hidden, view) / self.calibration.temperature
        return [self._answer(row) for row in torch.softmax(logits, dim=-1).tolist()]

    def _answer(self, probabilities: Sequence[float]) -> Answer:
        by_label = dict(zip(self.config.labels, probabilities, strict=True))
        label = max(by_label, key=by_label.__getitem__)
        answer: Answer = {"label": label, "score": by_label[label], "probabilities": by_label}
        if self.config.precision is None:
            return answer
        least = self.calibration.abstain_below
        abstains = least is not None and by_label[label] < least
        return {**answer, "label": None if abstains else label, "best_guess": label}

    def score(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> dict[str, float]:
        # Another task of this type may have other labels; its answer is wrong here.
        numbers = {label: number for number, label in enumerate(self.config.labels)}
        given = [None if a is None else numbers.get(a.get("best_guess", a["label"])) for a in answers]
        found = classification_scores(given, [self._expected(example) for example in examples])
        if self.config.precision is None:
            return found
        kept = [None if a is None else a["label"] for a in answers]
        return {**found, **kept_scores(kept, [self.label(example) for example in examples])}

    def trivial_answers(self, train: Sequence[Example], examples: Sequence[Example]) -> list[Answer]:
        majority = Counter(self._expected(example) for example in train).most_common(1)[0][0]
        return [self._answer([float(number == majority) for number in range(len(self.config.labels))])] * len(examples)
