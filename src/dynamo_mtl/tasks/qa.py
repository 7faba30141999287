"""Extractive question answering: the span of a context that answers a question (SQuAD and its like)."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.errors import DataError
from dynamo_mtl.metrics.spans import no_answer_scores, span_scores, token_f1
from dynamo_mtl.model.adapter import LoraConfig
from dynamo_mtl.model.calibration import AnswerCalibration
from dynamo_mtl.model.heads import Head, HeadConfig, TokenHead
from dynamo_mtl.tasks.answer_columns import answer_pairs, answered_columns, without_answer
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource, EncodedWindow, TaskView, clean
from dynamo_mtl.tasks.instruction_templates import read_instruction_templates
from dynamo_mtl.tasks.recognition import Guess, Table
from dynamo_mtl.tasks.task import Answer, Example, PublishedHead, Task
from dynamo_mtl.tasks.task_config import TaskConfig

EDGES = ("start", "end")
"""Labels of a window: the tokens where the answer begins and ends."""


class QuestionAnsweringConfig(TaskConfig):
    """Extractive question answering."""

    max_answer_tokens: int = Field(default=30, ge=1)
    """Maximum number of tokens in an answer."""
    no_answer: bool = False
    """Whether the passage may hold no answer, as in SQuAD 2.0 (Rajpurkar et al. 2018, arXiv 1806.03822)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all tokens of a window (Szegedy et al. 2016, arXiv 1512.00567)."""


class QuestionAnswering(Task):
    """Answers with the best span over all windows of the context, as characters of the original text."""

    type = "qa"
    Config = QuestionAnsweringConfig
    lora = LoraConfig(rank=16, alpha=32.0, target_modules=["query", "value"])
    needs_context = True
    all_windows = True
    tunes_answers = True
    column_names = {"question": ("question",), "context": ("context", "passage"), "answers": ("answers", "answer")}
    optional_columns = {"answer_start": ("answer_start", "answer_offset")}
    input_columns = {"question": "text", "context": "context"}
    instruction_templates = read_instruction_templates("qa")
    main_metric = "f1"
    trivial_name = "the context's sentence with most words of the question, or none where most questions have none"
    hub_task = "question-answering"
    answer_key = "answer"
    answer_form = "span"
    published_head = PublishedHead("AutoModelForQuestionAnswering", names_labels=False)
    recognition_rank = 2
    config: QuestionAnsweringConfig

    def __init__(self, name: str, config: QuestionAnsweringConfig) -> None:
        super().__init__(name, config)
        guess = {"best_guess": str} if config.no_answer else {}
        self.answer_parts = {"score": float, "start": int, "end": int, **guess}

    def read(self, row: Mapping[str, Any], where: str) -> Example:
        context = self.text_column(row, "context", where)
        answers = self.optional_value(row, "answers", where) if self.config.no_answer else None
        if answers is None and not self.config.no_answer:
            answers = self.column(row, "answers", where)
        start = self.optional_column(row, "answer_start", where)
        pairs = [] if answers is None else answer_pairs(answers, start, context)
        if pairs is None:
            raise DataError(
                f"{where}: 'answers' of task '{self.name}' should hold 'text' and 'answer_start', or be words of the "
                f"context, found {answers!r:.80}",
                "answers of another form",
            )
        if not pairs and not self.config.no_answer:
            raise DataError(
                f"{where}: no answer for a question of task '{self.name}'; leave it out, or set "
                f"tasks.{self.name}.no_answer: true",
                "no answer",
            )
        pairs = [(clean(text), start) for text, start in pairs]
        for text, start in pairs:
            if not text or start < 0 or context[start : start + len(text)] != text:
                raise DataError(
                    f"{where}: the answer {text!r} of task '{self.name}' does not stand at character {start} "
                    "of its context",
                    "answer not in its context",
                )
        return Example(self.text_column(row, "question", where), context, json.dumps(pairs))

    @classmethod
    def recognise(cls, table: Table, name: str) -> Guess | None:
        """Recognise columns of questions, passages, and answers that occur in the passages."""
        given = {own: table.chosen.get(own) or table.named(names) for own, names in cls.column_names.items()}
        if not all(given.values()):
            given = next(answered_columns(table), {})
        if not given:
            return None
        found = {own: str(column) for own, column in given.items()}
        start = table.named(cls.optional_columns["answer_start"])
        if start is not None:
            found["answer_start"] = start
        why = f"the answers of '{found['answers']}' stand in '{found['context']}'"
        none = without_answer(table.columns[found["answers"]])
        guess = cls.guess(table, name, why, found, **({"no_answer": True} if none else {}))
        if none:
            guess.notes.append(f"{none} questions have no answer")
        return guess

    def output_names(self) -> list[str]:
        return list(EDGES)

    def head_config(self) -> HeadConfig:
        return HeadConfig("token", labels=2)  # whether an answer starts or ends there

    def encode(self, example: Example, source: EncodedSource, route: int) -> EncodedExample:
        text, start = next(iter(json.loads(example.target)), ("", -1))  # no answer: in no window
        spans = [self._token_span(window, start, start + len(text)) for window in source.windows]
        labels = {"start": [s for s, _ in spans], "end": [e for _, e in spans]}
        return replace(self.unanswered(source, route), labels=labels)

    def reading_note(self, row: Mapping[str, Any], example: Example) -> str | None:
        answers = row.get(next((name for name in self.names_of("answers") if name in row), ""))
        if (
            example.target == "[]"
            or not isinstance(answers, str)
            or self.optional_column(row, "answer_start", "") is not None
        ):
            return None
        text = json.loads(example.target)[0][0]
        several = answers.strip() == text and (example.context or "").count(text) > 1
        return "the answer stands several times in its context: the first is taken" if several else None

    def lost(self, example: EncodedExample, source: EncodedSource, target: str) -> str | None:
        spans = [(s, e) for s, e in zip(example.labels["start"], example.labels["end"], strict=True) if s]
        if not spans and target != "[]":
            return "the answer is in no window, or begins or ends inside of a token"
        if spans and min(e - s + 1 for s, e in spans) > self.config.max_answer_tokens:
            return f"the answer has more than max_answer_tokens ({self.config.max_answer_tokens}) tokens"
        return None

    def _token_span(self, window: EncodedWindow, start: int, end: int) -> tuple[int, int]:
        """First and last token of a character span; ``(0, 0)`` (no answer) if the window does not have all of it."""
        inside = [i for i, (s, e) in enumerate(window.offsets) if s < end and e > start]
        if not inside or window.offsets[inside[0]][0] > start or window.offsets[inside[-1]][1] < end:
            return 0, 0
        return window.body_start + inside[0], window.body_start + inside[-1]

    def _logits(self, head: Head, hidden: Tensor, view: TaskView) -> Tensor:
        """Start and end logits ``(windows, longest, 2)``, -inf where there is no token."""
        assert isinstance(head, TokenHead)
        first, last = int(view.tokens[0, 0]), int(view.tokens.max()) + 1
        logits = head(hidden[first:last])[view.tokens.clamp_min(first) - first]
        return logits.masked_fill(~view.mask[:, :, None], float("-inf"))

    def losses(self, head: Head, hidden: Tensor, view: TaskView) -> Tensor:
        logits = self._logits(head, hidden, view)
        start, end = (F.cross_entropy(logits[:, :, n], view.labels[k], reduction="none") for n, k in enumerate(EDGES))
        losses = (start + end) / 2
        smoothing = self.config.label_smoothing if head.training else 0.0
        if not smoothing:
            return losses
        spread = torch.log_softmax(logits, dim=1).masked_fill(~view.mask[:, :, None], 0.0).sum(dim=1)
        return (1 - smoothing) * losses - smoothing * spread.mean(dim=1) / view.mask.sum(dim=1)

    def evidence(self, head: Head, hidden: Tensor, view: TaskView) -> tuple[Tensor, Tensor] | None:
        """Whether there is an answer: 0 against the best margin over "no answer here" of all windows."""
        if not self.config.no_answer:
            return None
        logits = self._logits(head, hidden, view)
        totals = logits[:, 1:, None, 0] + logits[:, None, 1:, 1]
        allowed = torch.ones_like(totals[0], dtype=torch.bool).triu().tril(self.config.max_answer_tokens - 1)
        spans = totals.masked_fill(~allowed, float("-inf")).flatten(1).amax(dim=1)
        margins = spans - logits[:, 0].sum(dim=1)
        count = len(view.examples)
        best = margins.new_full((count,), float("-inf")).scatter_reduce(0, view.window_rows, margins, "amax")
        found = torch.zeros(count, dtype=torch.long, device=margins.device)
        found = found.scatter_reduce(0, view.label_rows, (view.labels["start"] > 0).long(), "amax")
        return torch.stack([torch.zeros_like(best), best], dim=1), found

    def tune(self, answers: Sequence[Answer], examples: Sequence[Example]) -> AnswerCalibration:
        """Choose the probability of an answer from which one is given, by F1 over all questions."""
        gains: list[tuple[float, float]] = []
        for answer, example in zip(answers, examples, strict=True):
            accepted = [text for text, _ in json.loads(example.target)]
            f1 = max((token_f1(answer["best_guess"], text) for text in accepted), default=-1.0)
            gains.append((answer["answerable"], f1))
        gains.sort(reverse=True)
        total = list(itertools.accumulate((f1 for _, f1 in gains), initial=0.0))
        place = max(range(len(total)), key=total.__getitem__)
        above, below = gains[place - 1][0] if place else 1.0, gains[place][0] if place < len(gains) else 0.0
        return replace(self.calibration, thresholds=[(above + below) / 2])

    def answers(self, head: Head, hidden: Tensor, view: TaskView, sources: Sequence[EncodedSource]) -> list[Answer]:
        logits = self._logits(head, hidden, view)
        nothing: Answer = {"answer": "", "score": 0.0, "start": 0, "end": 0}
        best: list[tuple[float, Answer, float]] = [(float("-inf"), nothing, 1.0)] * len(sources)
        seen: dict[int, int] = {}
        for window_logits, row in zip(logits, view.window_rows.tolist(), strict=True):
            number = seen.get(row, 0)
            seen[row] = number + 1
            found = self.best_span(window_logits, sources[row].windows[number], sources[row].body)
            if found is not None and found[0] > best[row][0]:
                none = float(torch.log_softmax(window_logits, dim=0)[0].sum().exp())
                best[row] = (*found, none)
        return [self._given(*one) for one in best] if self.config.no_answer else [answer for _, answer, _ in best]

    def _given(self, margin: float, answer: Answer, none: float) -> Answer:
        """The answer of a task whose questions may have none: empty where the margin is too small."""
        answerable = 1 / (1 + math.exp(-max(-500.0, margin / self.calibration.temperature)))
        least = next(iter(self.calibration.thresholds), 0.5)
        guess = {"answerable": answerable, "best_guess": answer["answer"]}
        if answerable >= least:
            return {**answer, **guess}
        return {"answer": "", "score": none, "start": 0, "end": 0, **guess}

    def best_span(self, logits: Tensor, window: EncodedWindow, body: str) -> tuple[float, Answer] | None:
        """Best span of one window, after its margin over "no answer here". Windows are compared by this margin."""
        count = len(window.offsets)
        if count == 0:
            return None
        region = slice(window.body_start, window.body_start + count)
        start, end = logits[region, 0], logits[region, 1]
        total = start[:, None] + end[None, :]
        allowed = torch.ones_like(total, dtype=torch.bool).triu().tril(self.config.max_answer_tokens - 1)
        flat = int(total.masked_fill(~allowed, float("-inf")).argmax())
        first, last = divmod(flat, count)
        log_probability = torch.log_softmax(logits, dim=0)
        score = log_probability[window.body_start + first, 0] + log_probability[window.body_start + last, 1]
        margin = float(total[first, last] - logits[0].sum())
        begin, stop = window.offsets[first][0], window.offsets[last][1]
        return margin, {"answer": body[begin:stop], "score": float(score.exp()), "start": begin, "end": stop}

    def score(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> dict[str, float]:
        predictions = [None if a is None else (a["answer"], a["start"], a["end"]) for a in answers]
        references = [[(t, s) for t, s in json.loads(e.target)] for e in examples]
        found = span_scores(predictions, references)
        return {**found, **no_answer_scores(predictions, references)} if self.config.no_answer else found

    def trivial_answers(self, train: Sequence[Example], examples: Sequence[Example]) -> list[Answer]:
        answers: list[Answer] = []
        for example in examples:
            words = set(re.findall(r"\w+", example.text.lower()))
            spans = [m.span() for m in re.finditer(r"[^.!?\s][^.!?]*[.!?]?", example.context or "")] or [(0, 0)]
            context = example.context or ""
            first, last = max(spans, key=lambda s: len(words & set(re.findall(r"\w+", context[s[0] : s[1]].lower()))))
            answers.append({"answer": context[first:last], "score": 1.0, "start": first, "end": last})
        if not self.config.no_answer:
            return answers
        without = sum(example.target == "[]" for example in train) / max(1, len(train))
        margin = -500.0 if without > 0.5 else 500.0
        return [self._given(margin, answer, 1.0) for answer in answers]
