"""Read and check requests, for the Python API and the HTTP server: inputs, tasks and decoding settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynamo_mtl.config.validation import validate
from dynamo_mtl.errors import ConfigError, InputError
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import Asked, Question
from dynamo_mtl.inference.task_choice import TaskChoice, choose_tasks
from dynamo_mtl.messages import did_you_mean
from dynamo_mtl.tasks.encoding import EncodedSource
from dynamo_mtl.tasks.generation_task import GenerationConfig, GenerationTask

TEXT_KEYS = ("text", "question")
CONTEXT_KEYS = ("context", "text_pair")
INPUT_KEYS = (*TEXT_KEYS, *CONTEXT_KEYS, "instruction", "choices", "task_hint")
"""Keys of an input that is a mapping."""
Given = str | Mapping[str, Any]


@dataclass(frozen=True)
class Decoding:
    """Decoding settings that a call asked for."""

    settings: dict[str, GenerationConfig]
    """Task → its settings, for the tasks that can use them."""
    unusable: dict[str, str]
    """Task → why it cannot use them."""


@dataclass(frozen=True)
class Manner:
    """How the inputs of a call are to be answered."""

    task_hint: str | None = None
    """The task that must answer inputs that name none; the router chooses if None."""
    tasks: TaskChoice | None = None
    """The tasks that must all answer; only one does if None."""
    top_k: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    """Decoding settings, for the tasks that write text."""


class RequestReader:
    """Reads the inputs of calls for one model."""

    def __init__(self, predictor: Predictor) -> None:
        """
        Args:
            predictor: of the model.
        """
        self.predictor, self.system = predictor, predictor.system

    def check(self, task_hint: str | None, top_k: int | None) -> None:
        """Refuse a task or a number of adapters that the model does not have. Raises ``ConfigError``."""
        if task_hint is not None and task_hint not in self.system.tasks:
            raise ConfigError(f"task_hint: no task '{task_hint}'; {did_you_mean(task_hint, self.system.tasks)}")
        if top_k is not None and (type(top_k) is not int or not 1 <= top_k <= len(self.system.tasks)):
            raise ConfigError(
                f"top_k: found {top_k!r}; use a whole number from 1 to {len(self.system.tasks)}, the number of tasks"
            )

    def decoding(self, overrides: Mapping[str, Any], task: str | None = None) -> Decoding:
        """Apply ``overrides`` to the decoding settings of a task.

        If ``task`` is None or does not write text, apply them to every task that writes text.

        Raises:
            ConfigError: no task can use the overrides: a setting does not exist, or its value is not allowed.
        """
        found = Decoding({}, {})
        if not overrides:
            return found
        writers = {name: t.config.generation for name, t in self.system.tasks.items() if isinstance(t, GenerationTask)}
        own = {task: writers[task]} if task in writers else writers
        room = self.system.model.encoder.config.longest_sequence - self.system.config.data.max_source_length - 1
        for name, before in own.items():
            try:
                settings = validate(GenerationConfig, {**before.model_dump(), **overrides}, "generation")
            except ConfigError as error:
                found.unusable[name] = str(error)
                continue
            if settings.max_new_tokens > room:
                found.unusable[name] = (
                    f"generation.max_new_tokens: at most {room}; the backbone has no positions for more beside a source"
                )
            else:
                found.settings[name] = settings
        if found.unusable and not found.settings:
            raise ConfigError(next(iter(found.unusable.values())))
        return found

    def manner(
        self,
        task_hint: str | None = None,
        tasks: str | Sequence[str] | None = None,
        top_k: int | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> Manner:
        """Check how a call wants its inputs answered. Raises ``ConfigError``."""
        self.check(task_hint, top_k)
        chosen = choose_tasks(tasks, self.system)
        if chosen is not None and task_hint is not None:
            raise ConfigError("task_hint: found beside tasks, which names all that answer; leave one out")
        self.decoding(generation or {}, task_hint)
        return Manner(task_hint, chosen, top_k, generation or {})

    def read(self, given: Given, manner: Manner) -> Asked:
        """Check and encode one input for all tasks that are asked about it.

        Raises:
            ConfigError: the input is not valid, or the task or a decoding setting does not exist.
            InputError: no task that is asked can answer it as it is.
        """
        values, source = self._encoded(given)
        if manner.tasks is None:
            hint = values.get("task_hint") or manner.task_hint
            self.check(hint, manner.top_k)
            question = self._question(source, hint, manner)
            if hint is not None and (problem := self.predictor.problem(question, hint)) is not None:
                raise InputError(problem)
            return Asked([question])
        if values.get("task_hint") is not None:
            raise ConfigError("input: task_hint stands beside tasks, which names all that answer; leave one out")
        questions: list[Question] = []
        refused: dict[str, str] = {}
        for name in manner.tasks.names:
            try:
                question = self._question(source, name, manner)
            except ConfigError as error:  # this task cannot decode so
                refused[name] = str(error)
                continue
            problem = self.predictor.problem(question, name)
            if problem is None:
                questions.append(question)
            else:
                refused[name] = problem
        if not questions:
            raise InputError("; ".join(refused.values()))
        names = manner.tasks.names
        if manner.tasks.only_fitting:
            names, refused = [name for name in names if name not in refused], {}
        return Asked(questions, refused, names)

    def question(
        self, given: Given, task_hint: str | None, top_k: int | None, generation: Mapping[str, Any]
    ) -> Question:
        """Like ``read``, for one answer."""
        return self.read(given, Manner(task_hint, None, top_k, generation)).questions[0]

    def _question(self, source: EncodedSource, task: str | None, manner: Manner) -> Question:
        decoding = self.decoding(manner.generation, task)
        return Question(source, task, None, manner.top_k, decoding.settings, decoding.unusable)

    def _encoded(self, given: Given) -> tuple[dict[str, Any], EncodedSource]:
        """The parts of an input, and its tokens. Raises ``ConfigError``."""
        if not isinstance(given, str | Mapping):
            raise ConfigError(f"an input should be a text or a mapping, found {type(given).__name__}")
        values = {"text": given} if isinstance(given, str) else dict(given)
        for key, value in values.items():
            if key not in INPUT_KEYS:
                raise ConfigError(f"input: no key '{key}'; {did_you_mean(str(key), INPUT_KEYS)}")
            if key == "choices":
                check_choices(value)
            elif not isinstance(value, str | None):
                raise ConfigError(f"input: {key} should be a text, found {type(value).__name__}")
        texts = [values[key] for key in TEXT_KEYS if values.get(key) is not None]
        if len(texts) != 1:
            raise ConfigError(f"input: expected one of text and question, found {', '.join(values) or 'nothing'}")
        contexts = [values[key] for key in CONTEXT_KEYS if values.get(key) is not None]
        if len(contexts) > 1:
            raise ConfigError(
                "input: found both context and text_pair, which are two names for the same; leave one out"
            )
        source = self.system.source.encode(
            str(texts[0]), next(iter(contexts), None), values.get("instruction"), values.get("choices")
        )
        return values, source


def check_choices(given: Any) -> None:
    """Refuse choices that are not two texts or more. Raises ``ConfigError``."""
    if given is None:
        return
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(one, str) for one in given):
        raise ConfigError("input: choices should be a list of texts")
    if len(given) < 2:
        raise ConfigError(f"input: choices should be two texts or more, found {len(given)}")
