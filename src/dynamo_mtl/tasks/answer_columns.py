"""Reads the answers of questions about a passage, in any form in which they are published."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dynamo_mtl.data.columns import Column
from dynamo_mtl.tasks.encoding import clean
from dynamo_mtl.tasks.recognition import Table


def answer_pairs(answers: Any, start: Any, context: str) -> list[tuple[str, int]] | None:
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
    return None if isinstance(parsed, str) else answer_pairs(parsed, start, context)


def _numbers(given: Any) -> list[int] | None:
    """Parse positions: whole numbers, also written as texts or floats, as tables do; None if one is neither."""
    values = given if isinstance(given, list) else [given]
    written = [str(value).strip() for value in values]
    if not all(re.fullmatch(r"-?\d{1,15}(\.0)?", text) for text in written):
        return None
    return [int(text.partition(".")[0]) for text in written]


def answered_columns(table: Table) -> Iterator[dict[str, str | None]]:
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


def without_answer(column: Column) -> int:
    """Number of values that hold no answer, among all empty cells and the nested values of the sample."""

    def is_empty(value: Any) -> bool:
        texts = value.get("text") if isinstance(value, Mapping) else value
        return isinstance(texts, list) and not texts

    return column.empty + sum(map(is_empty, column.sample))
