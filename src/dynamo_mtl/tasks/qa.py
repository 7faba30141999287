"""Extractive question answering: the span of a context that answers a question (SQuAD and its like)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.errors import DataError
from dynamo_mtl.metrics.spans import span_scores
from dynamo_mtl.model.heads import Head, HeadConfig, TokenHead
from dynamo_mtl.model.lora import LoraConfig
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource, EncodedWindow, TaskView, clean
from dynamo_mtl.tasks.task import Answer, Example, Task, TaskConfig
from dynamo_mtl.tasks.wordings import read_wordings


class QuestionAnsweringConfig(TaskConfig):
    """Extractive question answering."""

    max_answer_tokens: int = Field(default=30, ge=1)
    """A longer span is no answer."""


class QuestionAnswering(Task):
    """The best span over all windows of the context, given as characters of the original text."""

    type = "qa"
    Config = QuestionAnsweringConfig
    lora = LoraConfig(rank=16, alpha=32.0, target_modules=["query", "value"])
    needs_context = True
    all_windows = True
    column_names = {"question": ("question",), "context": ("context", "passage"), "answers": ("answers", "answer")}
    wordings = read_wordings("qa")
    main_metric = "f1"
    trivial_name = "the context's sentence with most words of the question"
    hub_task = "question-answering"
    config: QuestionAnsweringConfig

    def read(self, row: Mapping[str, Any], where: str) -> Example:
        context = self.text_column(row, "context", where)
        answers = self.column(row, "answers", where)
        pairs = _answer_pairs(answers, context)
        if pairs is None:
            raise DataError(
                f"{where}: 'answers' of task '{self.name}' should hold 'text' and 'answer_start', or be words of the "
                f"context, found {answers!r:.80}",
                "answers of another form",
            )
        if not pairs:
            raise DataError(
                f"{where}: no answer for a question of task '{self.name}'; unanswerable ones must be left out",
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

    def output_names(self) -> list[str]:
        return ["start", "end"]

    def head_config(self) -> HeadConfig:
        return HeadConfig("token", labels=2)  # whether an answer starts or ends there

    def encode(self, example: Example, source: EncodedSource, route: int) -> EncodedExample:
        text, start = json.loads(example.target)[0]
        spans = [self._token_span(window, start, start + len(text)) for window in source.windows]
        labels = {"start": [s for s, _ in spans], "end": [e for _, e in spans]}
        return replace(self.unanswered(source, route), labels=labels)

    def is_lost(self, example: EncodedExample, source: EncodedSource, target: str) -> bool:
        return not any(example.labels["start"])  # the answer's first token is in no window

    def _token_span(self, window: EncodedWindow, start: int, end: int) -> tuple[int, int]:
        """First and last token of a character span; twice the window's first (no answer) if it is not all inside."""
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
        start = F.cross_entropy(logits[:, :, 0], view.labels["start"], reduction="none")
        end = F.cross_entropy(logits[:, :, 1], view.labels["end"], reduction="none")
        return (start + end) / 2

    def answers(self, head: Head, hidden: Tensor, view: TaskView, sources: Sequence[EncodedSource]) -> list[Answer]:
        logits = self._logits(head, hidden, view)
        rows = view.window_rows.tolist()
        best: list[tuple[float, Answer]] = [(float("-inf"), {"answer": "", "score": 0.0, "start": 0, "end": 0})] * len(
            sources
        )
        seen: dict[int, int] = {}
        for window_logits, row in zip(logits, rows, strict=True):
            number = seen.get(row, 0)
            seen[row] = number + 1
            found = self.best_span(window_logits, sources[row].windows[number], sources[row].body)
            if found is not None and found[0] > best[row][0]:
                best[row] = found
        return [answer for _, answer in best]

    def best_span(self, logits: Tensor, window: EncodedWindow, body: str) -> tuple[float, Answer] | None:
        """Best span of one window with its margin over "no answer here", by which windows are compared."""
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
        return span_scores(predictions, [[(t, s) for t, s in json.loads(e.target)] for e in examples])

    def trivial_answers(self, train: Sequence[Example], examples: Sequence[Example]) -> list[Answer]:
        answers: list[Answer] = []
        for example in examples:
            words = set(re.findall(r"\w+", example.text.lower()))
            spans = [m.span() for m in re.finditer(r"[^.!?\s][^.!?]*[.!?]?", example.context or "")] or [(0, 0)]
            context = example.context or ""
            first, last = max(spans, key=lambda s: len(words & set(re.findall(r"\w+", context[s[0] : s[1]].lower()))))
            answers.append({"answer": context[first:last], "score": 1.0, "start": first, "end": last})
        return answers


def _answer_pairs(answers: Any, context: str) -> list[tuple[str, int]] | None:
    """``(text, first character)`` of every accepted answer, from any published form; None if it is none of them.

    Plain text is the answer itself, where it first stands in the context.
    """
    if isinstance(answers, str):  # a cell of a table
        plain = clean(answers).strip()
        if plain and plain in context:
            return [(plain, context.index(plain))]
        try:
            answers = json.loads(answers)
        except ValueError:
            return None
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text"), answers.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            return None
        pairs = list(zip(texts, starts, strict=True))
    elif isinstance(answers, list) and all(isinstance(a, Mapping) for a in answers):
        pairs = [(a.get("text"), a.get("answer_start")) for a in answers]
    else:
        return None
    well_formed = all(isinstance(text, str) and type(start) is int for text, start in pairs)
    return pairs if well_formed else None
