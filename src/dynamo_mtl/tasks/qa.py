"""Extractive question answering: the span of a context that answers a question (SQuAD and its like)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.errors import DataError
from dynamo_mtl.metrics.spans import span_scores
from dynamo_mtl.model.adapter import LoraConfig
from dynamo_mtl.model.heads import Head, HeadConfig, TokenHead
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource, EncodedWindow, TaskView, clean
from dynamo_mtl.tasks.instruction_templates import read_instruction_templates
from dynamo_mtl.tasks.recognition import Guess, Table
from dynamo_mtl.tasks.task import Answer, Example, PublishedHead, Task
from dynamo_mtl.tasks.task_config import TaskConfig


class QuestionAnsweringConfig(TaskConfig):
    """Extractive question answering."""

    max_answer_tokens: int = Field(default=30, ge=1)
    """Maximum number of tokens in an answer."""


class QuestionAnswering(Task):
    """Answers with the best span over all windows of the context, as characters of the original text."""

    type = "qa"
    Config = QuestionAnsweringConfig
    lora = LoraConfig(rank=16, alpha=32.0, target_modules=["query", "value"])
    needs_context = True
    all_windows = True
    column_names = {"question": ("question",), "context": ("context", "passage"), "answers": ("answers", "answer")}
    optional_columns = {"answer_start": ("answer_start", "answer_offset")}
    instruction_templates = read_instruction_templates("qa")
    main_metric = "f1"
    trivial_name = "the context's sentence with most words of the question"
    hub_task = "question-answering"
    answer_key = "answer"
    answer_form = "span"
    published_head = PublishedHead("AutoModelForQuestionAnswering", names_labels=False)
    recognition_rank = 2
    config: QuestionAnsweringConfig

    def read(self, row: Mapping[str, Any], where: str) -> Example:
        context = self.text_column(row, "context", where)
        answers = self.column(row, "answers", where)
        pairs = _answer_pairs(answers, self.optional_column(row, "answer_start", where), context)
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

    @classmethod
    def recognise(cls, table: Table, name: str) -> Guess | None:
        """Recognise columns of questions, passages, and answers that occur in the passages."""
        given = {own: table.chosen.get(own) or table.named(names) for own, names in cls.column_names.items()}
        if not all(given.values()):
            given = next(_answered_columns(table), {})
        if not given:
            return None
        found = {own: str(column) for own, column in given.items()}
        start = table.named(cls.optional_columns["answer_start"])
        if start is not None:
            found["answer_start"] = start
        why = f"the answers of '{found['answers']}' stand in '{found['context']}'"
        return cls.guess(table, name, why, found)

    def output_names(self) -> list[str]:
        return ["start", "end"]

    def head_config(self) -> HeadConfig:
        return HeadConfig("token", labels=2)  # whether an answer starts or ends there

    def encode(self, example: Example, source: EncodedSource, route: int) -> EncodedExample:
        text, start = json.loads(example.target)[0]
        spans = [self._token_span(window, start, start + len(text)) for window in source.windows]
        labels = {"start": [s for s, _ in spans], "end": [e for _, e in spans]}
        return replace(self.unanswered(source, route), labels=labels)

    def reading_note(self, row: Mapping[str, Any], example: Example) -> str | None:
        answers = self.column(row, "answers", "")
        if not isinstance(answers, str) or self.optional_column(row, "answer_start", "") is not None:
            return None
        text = json.loads(example.target)[0][0]
        several = answers.strip() == text and (example.context or "").count(text) > 1
        return "the answer stands several times in its context: the first is taken" if several else None

    def lost(self, example: EncodedExample, source: EncodedSource, target: str) -> str | None:
        spans = [(s, e) for s, e in zip(example.labels["start"], example.labels["end"], strict=True) if s]
        if not spans:
            return "the answer is in no window, or begins or ends inside of a token"
        if min(e - s + 1 for s, e in spans) > self.config.max_answer_tokens:
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


def _answer_pairs(answers: Any, start: Any, context: str) -> list[tuple[str, int]] | None:
    """Read ``(text, first character)`` of every accepted answer from any published form; None for another form.

    Args:
        answers: a text, a list of texts or of ``{"text", "answer_start"}``, lists of both, or one of these as JSON.
        start: first character of the answer, or a list with one for each, if that is a separate column.
        context: searched for the first occurrence of an answer without a position.
    """
    if isinstance(answers, str):  # a cell of a table
        return _from_text(clean(answers), start, context)
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text"), answers.get("answer_start", start)
        if isinstance(texts, str):
            return _from_text(clean(texts), starts, context)
    elif isinstance(answers, list) and all(isinstance(a, Mapping) for a in answers):
        texts, starts = [a.get("text") for a in answers], [a.get("answer_start") for a in answers]
    else:
        texts, starts = answers, start
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return None
    if starts is None or starts == "":
        plain = [clean(text).strip() for text in texts]
        return [(t, context.index(t)) for t in plain] if all(t and t in context for t in plain) else None
    places = _numbers(starts)
    return list(zip(texts, places, strict=True)) if places is not None and len(places) == len(texts) else None


def _from_text(text: str, start: Any, context: str) -> list[tuple[str, int]] | None:
    plain = text.strip()
    if start is not None and start != "":
        places = _numbers(start)
        if places is None or len(places) != 1:
            return None
        exact = context[places[0] : places[0] + len(text)] == text
        return [(text if exact else plain, places[0])]
    if plain and plain in context:
        return [(plain, context.index(plain))]
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return None if isinstance(parsed, str) else _answer_pairs(parsed, start, context)


def _numbers(given: Any) -> list[int] | None:
    """Parse positions: whole numbers, also written as texts or floats, as tables do; None if one is neither."""
    values = given if isinstance(given, list) else [given]
    written = [str(value).strip() for value in values]
    if not all(re.fullmatch(r"-?\d{1,15}(\.0)?", text) for text in written):
        return None
    return [int(text.partition(".")[0]) for text in written]


def _answered_columns(table: Table) -> Iterator[dict[str, str | None]]:
    """Yield columns of questions, contexts and answers in which the answers occur in their contexts."""
    longest = max(len(column.sample) for column in table.columns.values())
    texts = [c for c in table.columns.values() if not c.is_nested and c.sample and len(c.sample) == longest]
    for context in texts:
        for answer in texts:
            if answer is context or answer.mean_characters * 2 > context.mean_characters:
                continue
            pairs = list(zip(answer.sample, context.sample, strict=True))
            if sum(str(a).strip() in str(c) for a, c in pairs) < 0.9 * len(pairs):
                continue
            for question in texts:
                if question not in (answer, context) and question.share(r".*\?") > 0.5:
                    yield {"question": question.name, "context": context.name, "answers": answer.name}
