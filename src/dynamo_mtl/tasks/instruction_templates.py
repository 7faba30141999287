"""Expands a few lines of patterns into many instructions that mean the same."""

from __future__ import annotations

import itertools
import re
import warnings
from dataclasses import dataclass
from importlib import resources

import numpy as np


def expand(*patterns: str) -> tuple[str, ...]:
    """Return all instructions that the patterns describe, in order and each once.

    ``(a|b)`` is a choice between a and b. A choice may be empty, and choices may contain choices.

    >>> expand("(Write|Say) it(| now(| please)):")
    ('Write it:', 'Write it now:', 'Write it now please:', 'Say it:', 'Say it now:', 'Say it now please:')
    """
    return tuple(dict.fromkeys(wording for pattern in patterns for wording in _sequence(_tokens(pattern))))


def draw(pattern: str, rng: np.random.Generator) -> str:
    """Return a random one of the texts that a pattern describes, each choice drawn by itself."""
    return _drawn(_tokens(pattern), rng)


def _drawn(tokens: list[str], rng: np.random.Generator) -> str:
    """Like ``_sequence``, for one random text."""
    text = ""
    while tokens and tokens[-1] not in ("|", ")"):
        piece = tokens.pop()
        if piece != "(":
            text += piece
            continue
        options = [_drawn(tokens, rng)]
        while tokens.pop() == "|":
            options.append(_drawn(tokens, rng))
        text += options[int(rng.integers(len(options)))]
    return text


def _tokens(pattern: str) -> list[str]:
    """Split a pattern into marks and the text between them, in reverse, so that ``pop`` gives the next one."""
    return re.findall(r"[()|]|[^()|]+", pattern)[::-1]


def _sequence(tokens: list[str]) -> list[str]:
    """Expand a sequence of texts and choices, removing it from ``tokens`` up to the mark that ends it."""
    parts: list[list[str]] = []
    while tokens and tokens[-1] not in ("|", ")"):
        piece = tokens.pop()
        if piece != "(":
            parts.append([piece])
            continue
        options = _sequence(tokens)
        while tokens.pop() == "|":
            options += _sequence(tokens)
        parts.append(options)
    return ["".join(chosen) for chosen in itertools.product(*parts)]


@dataclass(frozen=True)
class InstructionTemplates:
    """Three sets of instructions for a task. No two share one, so that a model is judged on instructions new to it."""

    training: tuple[str, ...]
    validation: tuple[str, ...] = ()
    """Used to select the router and to calibrate its confidence; if empty, the training set is used."""
    evaluation: tuple[str, ...] = ()
    """Used to measure scores; if empty, the training set is used."""


def read_instruction_templates(task: str) -> InstructionTemplates:
    """The instructions of a built-in task: the patterns in ``instructions/*/TASK.txt``.

    The evaluation set was written by somebody who had not seen the other two.
    """
    folder = resources.files("dynamo_mtl.tasks").joinpath("instructions")
    evaluation, validation, training = (
        expand(*folder.joinpath(name, f"{task}.txt").read_text(encoding="utf-8").splitlines())
        for name in ("evaluation", "validation", "training")
    )
    validation = _without(validation, evaluation)
    return InstructionTemplates(_without(training, evaluation + validation), validation, evaluation)


def _without(instructions: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    """Drop instructions that have the same words as one of ``others``; case and punctuation do not count."""
    words = {tuple(re.findall(r"\w+", other.lower())) for other in others}
    return tuple(w for w in instructions if tuple(re.findall(r"\w+", w.lower())) not in words)


def __getattr__(name: str) -> type[InstructionTemplates]:
    """Accept ``Wordings``, the name in version 0.1.0; to be removed in the next release."""
    if name == "Wordings":
        warnings.warn("Wordings is now InstructionTemplates", DeprecationWarning, stacklevel=2)
        return InstructionTemplates
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
