"""Read and check requests, for the Python API and the HTTP server: inputs, tasks and decoding settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynamo_mtl.config.validation import validate
from dynamo_mtl.errors import ConfigError, InputError
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import Question
from dynamo_mtl.messages import did_you_mean
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

    def question(
        self, given: Given, task_hint: str | None, top_k: int | None, generation: Mapping[str, Any]
    ) -> Question:
        """Check and encode one input.

        Raises:
            ConfigError: the input is not valid, or the task or a decoding setting does not exist.
            InputError: the named task cannot answer it as it is.
        """
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
        hint = values.get("task_hint") or task_hint
        self.check(hint, top_k)
        source = self.system.source.encode(
            str(texts[0]), next(iter(contexts), None), values.get("instruction"), values.get("choices")
        )
        decoding = self.decoding(generation, hint)
        question = Question(source, hint, None, top_k, decoding.settings, decoding.unusable)
        if hint is not None and (problem := self.predictor.problem(question, hint)) is not None:
            raise InputError(problem)
        return question


def check_choices(given: Any) -> None:
    """Refuse choices that are not two texts or more. Raises ``ConfigError``."""
    if given is None:
        return
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(one, str) for one in given):
        raise ConfigError("input: choices should be a list of texts")
    if len(given) < 2:
        raise ConfigError(f"input: choices should be two texts or more, found {len(given)}")
