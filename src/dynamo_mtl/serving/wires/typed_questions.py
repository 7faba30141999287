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
    """A task, or a word of the client's own. ``TASK.LABEL`` asks whether a task gives that label."""
    kind: Kind
    instructions: str
    """The question in words. A trained task knows its question and does not read them."""
    options: Sequence[str]
    """Names of the options; of a predicate ``true`` and ``false``, in this order."""
    texts: Sequence[str]
    """What each option means, in words; empty where the name says it. Of a score the levels, the lowest first."""
    are_numbered: bool = False
    """Whether the names of the options are just their numbers."""

    @property
    def meanings(self) -> list[str]:
        """What each option says to a reader."""
        return [text or option for option, text in zip(self.options, self.texts, strict=True)]

    @property
    def words(self) -> list[tuple[str, ...]]:
        """For each option what may be the name of a label."""
        pairs = zip(self.options, self.texts, strict=True)
        return [(text,) if self.are_numbered else (option, text) for option, text in pairs]


class State:
    """What questions are about: a text; an object with the parts of an input; or other JSON, which is read as text."""

    def __init__(self, content: Any) -> None:
        """
        Args:
            content: as it was sent.
        """
        self.text = as_text(content)
        self.given: Given = self.text
        """The input of a trained task."""
        texts = [key for key in TEXT_KEYS if isinstance(content, Mapping) and isinstance(content.get(key), str)]
        parts = (*TEXT_KEYS, "context", "text_pair", "instruction")
        if len(texts) == 1 and all(key in parts and isinstance(value, str) for key, value in content.items()):
            self.given = dict(content)


@dataclass(frozen=True)
class Plan:
    """How a question is answered, about any state."""

    question: TypedQuestion
    task: str | None
    """The task that answers; None if the only option is certain."""
    read: Callable[[Answer], list[float]]
    """Answer → probability of each option, in their order."""
    chooses: bool = False
    """Whether the task is one of multiple choice, which reads the question and its options."""

    def given(self, state: State) -> Given:
        """What the task reads."""
        if not self.chooses:
            return state.given
        question = self.question
        asked = question.instructions or (question.name or "").replace("_", " ")
        is_bare = question.kind == "predicate" and not any(question.texts)
        # The question stands in front of every window of a long state.
        return {"text": asked, "context": state.text or None,
                "choices": ["yes", "no"] if is_bare else question.meanings}  # fmt: skip


def plan(question: TypedQuestion, system: System, place: str) -> Plan:
    """Find the task that answers a question.

    Args:
        question: what is asked.
        system: what answers.
        place: of the question in the request, for messages.

    Raises:
        RequestError: 422, if no task can answer it.
    """
    if len(question.options) == 1:
        return Plan(question, None, lambda _: [1.0])
    decisive = {name: task for name, task in system.tasks.items() if task.decides not in (None, "choice")}
    task = decisive.get(question.name or "")
    if task is not None:
        return Plan(question, task.name, _reader(task, question, place))
    name, dot, word = (question.name or "").partition(".")
    task = decisive.get(name)
    if dot and task is not None and question.kind == "predicate" and task.decides != "value":
        label = _Labels(task.output_names()).find(word)
        if label is not None:
            return Plan(question, name, lambda answer: [share := answer["probabilities"][label], 1 - share])
    choosers = [task for task in system.tasks.values() if task.takes_choices]
    chooser = next((task for task in choosers if task.needs_context), next(iter(choosers), None))
    if chooser is None:
        known = ", ".join(decisive) or "none"
        raise _refused(place, f"no task has this name, and none answers free questions; known: {known}")
    return Plan(question, chooser.name, lambda answer: list(answer["probabilities"]), chooses=True)


async def answer_all(
    server: Server, request: Request, model: DynamoInference, plans: Sequence[Plan], states: Sequence[State]
) -> list[list[tuple[list[float], int]]]:
    """For each state and each question the probability of each option, and the number of tokens that were read.

    Raises:
        RequestError: more questions or longer states than the server takes, or one that cannot be answered.
    """
    server.check_questions(len(plans) * len(states), max(len(state.text) for state in states))
    asked = [(plan, state) for state in states for plan in plans if plan.task is not None]
    found = iter(
        await server.ask(request, model, [(plan.given(state), plan.task) for plan, state in asked]) if asked else ()
    )
    results: list[list[tuple[list[float], int]]] = []
    for _ in states:
        own: list[tuple[list[float], int]] = []
        for one in plans:
            if one.task is None:
                own.append((one.read({}), 0))
            else:
                prediction, tokens = next(found)
                own.append((one.read(prediction.answer), tokens))
        results.append(own)
    return results


def as_text(content: Any) -> str:
    """Content of a request as text: JSON, if it is not text already. Raises ``RequestError`` for what is too deep."""
    if content is None:
        return ""
    try:
        return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    except RecursionError:
        raise RequestError(400, "json", "the body is nested too deeply") from None


class _Labels:
    """Finds labels by what a client calls them: exactly, or without regard to case, blanks and underscores."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        folded = [_folded(name) for name in names]
        self._folded = {key: name for key, name in zip(folded, names, strict=True) if folded.count(key) == 1}

    def find(self, *words: str) -> str | None:
        """The label that the first of some words names."""
        for word in words:
            found = word if word in self.names else self._folded.get(_folded(word))
            if found is not None:
                return found
        return None

    def __str__(self) -> str:
        return ", ".join(self.names)


def _folded(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _refused(place: str, says: str) -> RequestError:
    return RequestError(422, "validation", f"{place}: {says}")


def _reader(task: Task, question: TypedQuestion, place: str) -> Callable[[Answer], list[float]]:
    """How the answer of a trained task is read as probabilities of the options."""
    if task.decides == "value":
        if question.kind != "score":
            raise _refused(place, f"the task '{task.name}' gives a number; ask a question of type score")
        return _by_value(task, len(question.options))
    labels = _Labels(task.output_names())
    if task.decides == "labels":
        raise _refused(
            place,
            f"the task '{task.name}' gives each label by itself; ask yes or no questions named {task.name}.LABEL, of "
            f"the labels {labels}",
        )
    if question.kind == "predicate":
        return _by_label(_yes_and_no(task, labels, question, place))
    chosen = [label for words in question.words if (label := labels.find(*words)) is not None]
    if len(set(chosen)) == len(question.options):
        return _by_label(chosen)
    if task.decides == "level" and question.kind == "score":
        is_whole = len(question.options) == len(labels.names)
        return _by_label(labels.names) if is_whole else _by_value(task, len(question.options))
    raise _refused(place, f"the task '{task.name}' has the labels {labels}; give these, or some of them")


def _by_label(names: Sequence[str]) -> Callable[[Answer], list[float]]:
    """The probabilities of some labels, among these alone."""

    def read(answer: Answer) -> list[float]:
        shares = [max(answer["probabilities"][name], 1e-12) for name in names]
        return [share / math.fsum(shares) for share in shares]

    return read


def _yes_and_no(task: Task, labels: _Labels, question: TypedQuestion, place: str) -> list[str]:
    """The labels of a task of two that mean true and false."""
    said = [labels.find(text) for text in question.texts]
    if len(labels.names) == 2:
        first, second = labels.names
        other = {first: second, second: first}
        if said[0] is not None and said[1] in (None, other[said[0]]):
            return [said[0], other[said[0]]]
        if said[0] is None and said[1] is not None:
            return [other[said[1]], said[1]]
        if not any(said):
            for yes, no in ((first, second), (second, first)):
                negations = [f"{word} {_folded(yes)}" for word in ("not", "no", "non")]
                is_true = _folded(yes) in TRUE_WORDS and _folded(no) not in TRUE_WORDS
                if is_true or _folded(no) in negations:
                    return [yes, no]
    raise _refused(
        place,
        f"the task '{task.name}' has the labels {labels}; give as criteria which of two means true and which false, or "
        f"name the question {task.name}.LABEL",
    )


def _by_value(task: Task, count: int) -> Callable[[Answer], list[float]]:
    """A number in its range, as the two levels that it lies between, so that the mean level is the number."""
    low, high = task.config.score_range  # pyright: ignore[reportAttributeAccessIssue] (tasks that give a value have one)
    last = count - 1

    def read(answer: Answer) -> list[float]:
        level = min(max((answer["value"] - low) / (high - low), 0.0), 1.0) * last
        below = min(int(level), last - 1)
        shares = [0.0] * count
        shares[below], shares[below + 1] = 1 - (level - below), level - below
        return shares

    return read
