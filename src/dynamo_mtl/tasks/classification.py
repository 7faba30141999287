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

from dynamo_mtl.data.columns import Column, number_as_written
from dynamo_mtl.errors import DataError
from dynamo_mtl.messages import shortened
from dynamo_mtl.metrics.classification import classification_scores
from dynamo_mtl.model.adapter import LoraConfig
from dynamo_mtl.model.heads import ClassificationHead, Head, HeadConfig
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource, TaskView
from dynamo_mtl.tasks.instruction_templates import read_instruction_templates
from dynamo_mtl.tasks.recognition import Guess, Table
from dynamo_mtl.tasks.task import Answer, Example, Task
from dynamo_mtl.tasks.task_config import TaskConfig

LABEL_NAMES = ("label", "labels", "category", "class", "topic", "target", "sentiment", "intent", "y", "gold", "tag")
"""Names that tell the label from other columns of few values."""
NOT_YET = "; no task type does that yet, so nothing is guessed from half of the columns"


class ClassificationConfig(TaskConfig):
    """Labels are names, or numbers in the data; their names are what users read."""

    labels: list[str] = Field(min_length=2)
    """Names in the order of the numbers that the data may hold instead; each once."""
    text_pair: bool = False
    """Whether each example has a second text, in the column ``text_pair``, and the label is about both: whether one
    follows from the other, says the same, or answers it."""
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
    """Single-label classification of a text, or of a pair of texts."""

    type = "classification"
    Config = ClassificationConfig
    lora = LoraConfig(rank=16, alpha=32.0, target_modules=["query", "value"])
    column_names = {"text": ("text", "sentence", "content"), "label": ("label", "category", "class", "topic")}
    optional_columns = {"text_pair": ("text_pair", "sentence2", "text2", "hypothesis")}
    missing_context = "compares two texts, and there is one; give the second as text_pair"
    instruction_templates = read_instruction_templates("classification")
    main_metric = "accuracy"
    trivial_name = "majority label"
    hub_task = "text-classification"
    starter_training = {"max_steps": 900, "batch_size": 32}
    recognition_rank = 5
    config: ClassificationConfig

    def __init__(self, name: str, config: ClassificationConfig) -> None:
        super().__init__(name, config)
        self.needs_context = self.needs_context or config.text_pair

    @classmethod
    def recognise(cls, table: Table, name: str) -> Guess | None:
        """Recognise a column of texts beside one with few different values."""
        _refuse_kinds_to_come(table)
        labels = [column for column in table.columns.values() if column.is_label]
        if not labels and "label" not in table.chosen:
            return None
        chosen = table.chosen.get("label") or _only(labels) or table.named(LABEL_NAMES)
        if chosen is None or (chosen not in table.chosen.values() and chosen not in [c.name for c in labels]):
            each = " or ".join(f"{c.name} ({shortened(sorted(c.counts), 4)})" for c in labels)
            raise table.ask(
                f"which column is the label, {each}? say --column {name}.label=NAME, and name a file twice, with a "
                "copy under another name, to learn several"
            )
        guess = cls._guess_labels(table, name, _texts(table, chosen, name), chosen)
        others = [column.name for column in labels if column.name != chosen]
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
        pair = self.text_column(row, "text_pair", where) if self.config.text_pair else None
        return Example(self.text_column(row, "text", where), pair, str(number))

    def split_group(self, example: Example) -> str:
        return example.text  # one premise has several hypotheses

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


def _only(columns: Sequence[Column]) -> str | None:
    return columns[0].name if len(columns) == 1 else None


def _texts(table: Table, label: str, name: str) -> list[str]:
    """Find the column of texts beside a label, or the two columns of pairs."""
    if "text" in table.chosen:
        return [table.chosen[own] for own in ("text", "text_pair") if own in table.chosen]
    rest = [c for c in table.columns.values() if c.name != label and not c.is_nested and c.filled]
    texts = [column for column in rest if column.is_text]
    if len(texts) > 2:
        each = " and ".join(f"'{column.name}'" for column in texts)
        raise table.ask(
            f"{each} hold texts beside the label '{label}': say --column {name}.text=NAME for the one that it is "
            f"about, and --column {name}.text_pair=NAME for the second one if it is about two"
        )
    if texts:
        second = Classification.optional_columns["text_pair"]
        return [column.name for column in sorted(texts, key=lambda column: column.name.strip().casefold() in second)]
    short = [c for c in rest if not (c.is_address or c.is_date or c.is_number or c.is_identifier or c.is_label)]
    known = table.named(Classification.column_names["text"])
    if known is None and not short:
        raise table.ask(f"no column holds texts beside the label '{label}'; say --column {name}.text=NAME")
    return [known or max(short, key=lambda column: column.words).name]


def _refuse_kinds_to_come(table: Table) -> None:
    """Raise ``ConfigError`` if a table is of a kind that no task type supports yet, and say which."""
    if "label" in table.chosen:
        return
    columns = table.columns.values()
    lists = [c for c in columns if c.sample and all(isinstance(v, list) for v in c.sample)]
    choices = [c for c in lists if all(isinstance(one, str) for value in c.sample for one in value)]
    numbers = [c for c in columns if not c.is_nested and c.is_number]
    numbered = [c for c in columns if re.fullmatch(r"(choice|option|ending|answer)_?[0-9A-Ea-e]", c.name)]
    if (choices and numbers and any(c.is_text for c in columns)) or len(numbered) > 1:
        raise table.ask(
            f"seems to ask for a choice among given options ({shortened(c.name for c in choices or numbered)}){NOT_YET}"
        )
    if choices:
        raise table.ask(f"'{choices[0].name}' holds several labels of a row{NOT_YET}")
    several = [c for c in columns if not c.is_nested and not c.is_text and c.parts()]
    if several:
        raise table.ask(
            f"'{several[0].name}' holds several labels of a row, such as {shortened(several[0].parts(), 4)}{NOT_YET}"
        )
    flags = [c for c in columns if set(c.folded) == {"0", "1"} or set(c.folded) == {"true", "false"}]
    if len(flags) > 2 and table.named(LABEL_NAMES) is None:
        raise table.ask(f"{shortened(c.name for c in flags)} are each yes or no: several labels of a row{NOT_YET}")
    scores = [c for c in columns if c.is_score]
    if scores and not any(c.is_label for c in columns) and any(c.is_text for c in columns):
        raise table.ask(f"'{scores[0].name}' holds scores{NOT_YET}")
