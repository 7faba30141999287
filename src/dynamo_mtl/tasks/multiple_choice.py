"""Multiple choice: one of the options that come with the input. They may be other ones for every input."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.errors import DataError
from dynamo_mtl.messages import shortened
from dynamo_mtl.metrics.classification import choice_scores
from dynamo_mtl.model.adapter import LoraConfig
from dynamo_mtl.model.heads import ChoiceHead, Head, HeadConfig
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource, TaskView, clean
from dynamo_mtl.tasks.instruction_templates import read_instruction_templates
from dynamo_mtl.tasks.recognition import Guess, Table
from dynamo_mtl.tasks.task import Answer, Example, Task
from dynamo_mtl.tasks.task_config import TaskConfig

NUMBERED = re.compile(r"(choice|option|ending|answer)_?([0-9]{1,2}|[A-Ea-e])")
"""Names of columns that hold one option each."""
SMALLEST = torch.finfo(torch.float32).min


class MultipleChoiceConfig(TaskConfig):
    """One of the options that come with the input."""

    passage: bool = False
    """Whether each example has a passage, in the column ``context``, that the question is about."""
    first_number: Literal[0, 1] = 0
    """Number of the first option, where the answer is a number."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over the options (Szegedy et al. 2016, arXiv 1512.00567)."""
    classifier_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout in the head."""


class MultipleChoice(Task):
    """Reads the input once and every option after it, and scores the markers in front of the options.

    An option sees the input and itself. So its score depends on no other option, nor on their order.
    """

    type = "multiple_choice"
    Config = MultipleChoiceConfig
    lora = LoraConfig(rank=16, alpha=32.0, target_modules="all-linear")
    all_windows = True
    takes_choices = True
    column_names = {
        "text": ("question", "text", "premise", "ctx"),
        "choices": ("choices", "options", "endings", "candidates"),
        "answer": ("answer", "label", "answerKey", "gold"),
    }
    optional_columns = {"context": ("context", "passage", "article")}
    input_columns = {"text": "text", "context": "context", "choices": "choices"}
    instruction_templates = read_instruction_templates("multiple_choice")
    main_metric = "accuracy"
    trivial_name = "the place where the right option stands most often"
    hub_task = "multiple-choice"
    answer_key = "choice"
    decides = "choice"
    answer_parts = {"index": int, "score": float}
    recognition_rank = 4
    config: MultipleChoiceConfig

    def __init__(self, name: str, config: MultipleChoiceConfig) -> None:
        super().__init__(name, config)
        self.needs_context = config.passage

    @classmethod
    def recognise(cls, table: Table, name: str) -> Guess | None:
        """Recognise lists of options, or a column for each, beside a column that says which is right."""
        if "label" in table.chosen:
            return None
        columns = table.columns
        chosen = table.chosen
        lists = [c for c in columns.values() if c.sample and all(_texts(value) is not None for value in c.sample)]
        lists = [c for c in lists if chosen.get("choices", c.name) == c.name]
        numbered = [c.name for c in columns.values() if NUMBERED.fullmatch(c.name)]
        if not lists and len(numbered) < 2:
            return None
        options = [_texts(value) or [] for value in lists[0].sample] if lists else []
        rest = [c for c in columns.values() if c.name not in numbered and c.name == chosen.get("answer", c.name)]
        ways = [(c.name, first) for first in (0, 1) for c in rest if _says_which(c.sample, options, numbered, first)]
        answer, first = next(iter(ways), (chosen.get("answer"), 0))
        rest = [c for c in columns.values() if c.name not in (answer, *numbered) and c.is_text]
        question = chosen.get("text") or table.named(cls.column_names["text"])
        question = question or (rest[0].name if len(rest) == 1 else None)
        if answer is None or question is None:
            return None
        passage = chosen.get("context") or table.named(cls.optional_columns["context"])
        found = {"text": question, "answer": answer}
        found |= {"choices": lists[0].name} if lists else {}
        found |= {"context": passage} if passage is not None else {}
        where = f"'{lists[0].name}'" if lists else shortened(numbered)
        settings: dict[str, Any] = {"passage": True} if passage is not None else {}
        settings |= {"first_number": 1} if first else {}
        return cls.guess(table, name, f"'{answer}' says which of the options in {where} is right", found, **settings)

    def read(self, row: Mapping[str, Any], where: str) -> Example:
        choices, names = self._choices(row, where)
        given = self.column(row, "answer", where)
        numbers = _numbers(given, choices, names, self.config.first_number)
        if len(numbers) != 1:
            what = "can mean several" if numbers else "is none"
            raise DataError(
                f"{where}: the answer {given!r:.60} of task '{self.name}' {what} of its {len(choices)} options; give "
                f"the number of the right one, from {self.config.first_number} (tasks.{self.name}.first_number), its "
                "letter, or its text",
                "an answer that is no option" if not numbers else "an answer that can mean several options",
            )
        context = self.text_column(row, "context", where) if self.config.passage else None
        return Example(self.text_column(row, "text", where), context, json.dumps(numbers[0]), choices)

    def _choices(self, row: Mapping[str, Any], where: str) -> tuple[list[str], list[str]]:
        """The options of a row, and the names by which the answer may call them."""
        given = [str(name) for name in row if NUMBERED.fullmatch(str(name))]
        has_list = any(name in row for name in self.names_of("choices"))
        if given and not has_list:
            found: Any = [row[name] for name in given]
            while found and found[-1] in (None, ""):  # a question with fewer options than others
                found.pop()
        else:
            found = _parsed(self.column(row, "choices", where))
        texts = _texts(found)
        if texts is None:
            raise DataError(
                f"{where}: choices of task '{self.name}' should be a list of texts, found {found!r:.80}",
                "choices of another form",
            )
        if len(texts) < 2:
            raise DataError(
                f"{where}: task '{self.name}' needs two choices or more, found {len(texts)}", "fewer than two choices"
            )
        names = found.get("label") if isinstance(found, Mapping) else None
        return [clean(text) for text in texts], [str(name) for name in names or ()]

    def output_names(self) -> list[str]:
        return ["option"]

    def head_config(self) -> HeadConfig:
        return HeadConfig("choice", labels=1, dropout=self.config.classifier_dropout)

    def encode(self, example: Example, source: EncodedSource, route: int) -> EncodedExample:
        return replace(self.unanswered(source, route), labels={"answer": [json.loads(example.target)]})

    def _logits(self, head: Head, hidden: Tensor, view: TaskView) -> Tensor:
        """``(examples, most options)``, averaged over the windows of each example; minus infinity for none."""
        assert isinstance(head, ChoiceHead)
        counts = torch.bincount(view.marker_windows, minlength=len(view.window_rows))
        first = counts.cumsum(0) - counts
        places = torch.arange(len(view.markers), device=hidden.device) - first[view.marker_windows]
        scores = head(hidden[view.markers])
        table = scores.new_full((len(counts), int(counts.max())), float("-inf"))
        return view.averaged(table.index_put((view.marker_windows, places), scores))

    def losses(self, head: Head, hidden: Tensor, view: TaskView) -> Tensor:
        logits, answers = self.evidence(head, hidden, view)
        losses = F.cross_entropy(logits, answers, reduction="none")
        smoothing = self.config.label_smoothing if head.training else 0.0
        if not smoothing:
            return losses
        real = logits > SMALLEST
        spread = torch.log_softmax(logits, dim=1).masked_fill(~real, 0.0).sum(dim=1) / real.sum(dim=1)
        return (1 - smoothing) * losses - smoothing * spread

    def evidence(self, head: Head, hidden: Tensor, view: TaskView) -> tuple[Tensor, Tensor]:
        return self._logits(head, hidden, view), view.labels["answer"]

    def answers(self, head: Head, hidden: Tensor, view: TaskView, sources: Sequence[EncodedSource]) -> list[Answer]:
        if not len(view.markers):
            return [_answer((), ()) for _ in sources]
        shares = torch.softmax(self._logits(head, hidden, view) / self.calibration.temperature, dim=1).tolist()
        return [
            _answer(source.choices, row[: len(source.choices)]) for source, row in zip(sources, shares, strict=True)
        ]

    def score(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> dict[str, float]:
        given = [None if answer is None else answer["index"] for answer in answers]
        return choice_scores(given, [json.loads(example.target) for example in examples])

    def trivial_answers(self, train: Sequence[Example], examples: Sequence[Example]) -> list[Answer]:
        place = Counter(json.loads(example.target) for example in train).most_common(1)[0][0]
        options = [example.choices or [] for example in examples]
        return [_answer(own, [float(n == min(place, len(own) - 1)) for n in range(len(own))]) for own in options]


def _answer(choices: Sequence[str], shares: Sequence[float]) -> Answer:
    """An answer, or an empty one to an input without options, whose caller is told that they are missing."""
    if not choices:
        return {"choice": "", "index": -1, "score": 0.0, "probabilities": []}
    best = max(range(len(choices)), key=shares.__getitem__)
    return {"choice": choices[best], "index": best, "score": shares[best], "probabilities": list(shares)}


def _parsed(given: Any) -> Any:
    """A cell, or what it holds as JSON."""
    if isinstance(given, str) and given.strip().startswith(("[", "{")):
        with suppress(ValueError, RecursionError):
            return json.loads(given)
    return given


def _texts(given: Any) -> list[str] | None:
    """Options as a list of texts; None if they are of another form. Also reads JSON, and ``{"text": [...]}``."""
    given = _parsed(given)
    found = given.get("text") if isinstance(given, Mapping) else given
    if not isinstance(found, list) or not all(isinstance(one, str | int | float) for one in found):
        return None
    return [str(one) for one in found]


def _numbers(given: Any, choices: Sequence[str], names: Sequence[str] = (), first: int = 0) -> list[int]:
    """Numbers of the options that an answer can mean, by its number, its name, its letter or its text."""
    written = str(given).strip().removesuffix(".0")
    if written in names:
        return [list(names).index(written)]
    found: list[int] = []
    if not isinstance(given, bool) and re.fullmatch(r"\d{1,4}", written) and 0 <= int(written) - first < len(choices):
        found.append(int(written) - first)
    if re.fullmatch(r"[A-Za-z]", written) and ord(written.upper()) - ord("A") < len(choices):
        found.append(ord(written.upper()) - ord("A"))
    if isinstance(given, str) and written in choices:
        found.append(list(choices).index(written))
    return list(dict.fromkeys(found))


def _says_which(values: Sequence[Any], options: Sequence[Sequence[str]], numbered: Sequence[str], first: int) -> bool:
    """Whether each value names one of the options of its row."""
    if not values or any(isinstance(value, list | Mapping | float) and not _is_whole(value) for value in values):
        return False
    own = options or [[""] * len(numbered)] * len(values)
    return len(own) == len(values) and all(
        _numbers(value, row, first=first) for value, row in zip(values, own, strict=True)
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()
