"""Typed questions about a text, each answered by a trained task or by the task of multiple choice.

A question whose name is a task is answered by it, if the options fit its labels or levels. Any other question goes to
a task of multiple choice, which reads the options that come with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from starlette.requests import Request

from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.inference.request_reader import TEXT_KEYS, Given
from dynamo_mtl.serving.handlers import Server
from dynamo_mtl.serving.http_errors import RequestError
from dynamo_mtl.system import System
from dynamo_mtl.tasks.task import Answer, Task

Kind = Literal["choice", "score", "predicate"]
TRUE_WORDS = ("true", "yes", "y", "1", "positive")
"""Labels that say yes."""


@dataclass(frozen=True)
class TypedQuestion:
    """A question with its options."""

    name: str | None
    """A task, or a word of the client's own. ``TASK.LABEL`` asks whether a task of several labels gives one."""
    kind: Kind
    instructions: str
    """The question in words. A trained task knows its question and does not read them."""
    options: Sequence[str]
    """Names of the options; of a predicate ``true`` and ``false``, in this order."""
    texts: Sequence[str]
    """What each option means, in words; empty where the name says it. Of a score the levels, the lowest first."""

    @property
    def meanings(self) -> list[str]:
        """What each option says to a reader."""
        return [text or option for option, text in zip(self.options, self.texts, strict=True)]


@dataclass(frozen=True)
class Planned:
    """How a question is answered."""

    given: Given | None
    """The input; None if the only option is certain."""
    task: str
    read: Callable[[Answer], list[float]]
    """Answer → probability of each option, in their order."""


def plan(question: TypedQuestion, state: Any, system: System, place: str) -> Planned:
    """Find the task that answers a question, and what it reads.

    Args:
        question: what is asked.
        state: the text that it is about; or a mapping with ``text`` or ``question`` and further parts of an input; or
            other JSON, which is read as text.
        system: what answers.
        place: of the question in the request, for messages.

    Raises:
        RequestError: 422, if no task can answer it.
    """
    if len(question.options) == 1:
        return Planned(None, "", lambda _: [1.0])
    name, _, label = (question.name or "").partition(".")
    task = system.tasks.get(question.name or "") or system.tasks.get(name)
    if task is not None and task.decides not in (None, "choice"):
        return Planned(_input(state), task.name, _reader(task, question, label, place))
    chooser = next((t for t in system.tasks.values() if t.takes_choices and t.needs_context), None)
    chooser = chooser or next((t for t in system.tasks.values() if t.takes_choices), None)
    if chooser is None:
        known = ", ".join(own.name for own in system.tasks.values() if own.decides not in (None, "choice"))
        raise _refused(place, f"no task has this name, and none answers free questions; known: {known or 'none'}")
    asked = question.instructions or (question.name or "").replace("_", " ")
    choices = ["yes", "no"] if question.kind == "predicate" and not any(question.texts) else question.meanings
    text = as_text(state)
    given = {"text": asked, "context": text} if chooser.needs_context else {"text": f"{text}\n\n{asked}"}
    return Planned({**given, "choices": choices}, chooser.name, lambda answer: list(answer["probabilities"]))


async def answered(
    server: Server, request: Request, model: DynamoInference, plans: Sequence[Planned]
) -> list[tuple[Answer, int]]:
    """The answers to planned questions, each with the number of tokens that were read for it."""
    wanted = [(one.given, one.task) for one in plans if one.given is not None]
    found = iter(await server.ask(request, model, wanted) if wanted else ())
    results: list[tuple[Answer, int]] = []
    for one in plans:
        if one.given is None:
            results.append(({}, 0))
        else:
            prediction, tokens = next(found)
            results.append((prediction.answer, tokens))
    return results


def as_text(content: Any) -> str:
    """Content of a request as text: JSON, if it is not text already."""
    if content is None:
        return ""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _input(state: Any) -> Given:
    """The input of a trained task."""
    if isinstance(state, Mapping) and len([key for key in TEXT_KEYS if isinstance(state.get(key), str)]) == 1:
        parts = (*TEXT_KEYS, "context", "text_pair", "instruction")
        if all(key in parts and isinstance(value, str) for key, value in state.items()):
            return dict(state)
    return as_text(state)


def _refused(place: str, says: str) -> RequestError:
    return RequestError(422, "validation", f"{place}: {says}")


def _reader(task: Task, question: TypedQuestion, label: str, place: str) -> Callable[[Answer], list[float]]:
    """How the answer of a trained task is read as probabilities of the options."""
    if task.decides == "value":
        return _by_value(task, question, place)
    labels = {_folded(name): name for name in task.output_names()}
    if task.decides == "labels":
        found = labels.get(_folded(label))
        if question.kind != "predicate" or found is None:
            raise _refused(
                place,
                f"the task '{task.name}' gives each label by itself; ask a yes or no question named {task.name}.LABEL, "
                f"of the labels {', '.join(labels.values())}",
            )
        return lambda answer: [share := answer["probabilities"][found], 1 - share]
    if question.kind == "predicate":
        return _by_label(_yes_and_no(task, labels, question, place))
    count = len(question.options)
    if task.decides == "level" and question.kind == "score" and count == len(labels):
        return _by_label(list(labels.values()))
    keys = [[_folded(part) for part in pair] for pair in zip(question.options, question.texts, strict=True)]
    chosen = [next((labels[key] for key in pair if key in labels), None) for pair in keys]
    if None in chosen or len(set(chosen)) < count:
        raise _refused(
            place, f"the task '{task.name}' has the labels {', '.join(labels.values())}; give these, or some of them"
        )
    return _by_label([str(name) for name in chosen])


def _by_label(names: Sequence[str]) -> Callable[[Answer], list[float]]:
    """The probabilities of some labels, among these alone."""

    def read(answer: Answer) -> list[float]:
        shares = [max(answer["probabilities"][name], 1e-12) for name in names]
        return [share / math.fsum(shares) for share in shares]

    return read


def _yes_and_no(task: Task, labels: Mapping[str, str], question: TypedQuestion, place: str) -> list[str]:
    """The labels of a task of two that mean true and false."""
    said = [labels.get(_folded(text)) for text in question.texts]
    if len(labels) == 2:
        first, second = labels
        if None not in said and said[0] != said[1]:
            return [str(name) for name in said]
        for yes, no in ((first, second), (second, first)):
            if (yes in TRUE_WORDS and no not in TRUE_WORDS) or no in (f"not {yes}", f"no {yes}", f"non {yes}"):
                return [labels[yes], labels[no]]
    raise _refused(
        place,
        f"the task '{task.name}' has the labels {', '.join(labels.values())}; give as criteria which of two means true "
        "and which false",
    )


def _by_value(task: Task, question: TypedQuestion, place: str) -> Callable[[Answer], list[float]]:
    """A number in its range, as the two levels that it lies between, so that the mean level is the number."""
    if question.kind != "score":
        raise _refused(place, f"the task '{task.name}' gives a number; ask a question of type score")
    low, high = task.config.score_range  # pyright: ignore[reportAttributeAccessIssue] (tasks that give a value have one)
    last = len(question.options) - 1

    def read(answer: Answer) -> list[float]:
        level = (answer["value"] - low) / (high - low) * last
        below = min(int(level), last - 1)
        shares = [0.0] * (last + 1)
        shares[below], shares[below + 1] = 1 - (level - below), level - below
        return shares

    return read


def _folded(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
