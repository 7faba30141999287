"""Instructions that say the same in many ways, from a few lines of patterns."""

from __future__ import annotations

import itertools
import re
import warnings
from dataclasses import dataclass
from importlib import resources


def expand(*patterns: str) -> tuple[str, ...]:
    """All instructions that patterns stand for, in order.

    ``(a|b)`` is a choice, an empty choice leaves the place out, and choices may hold choices.

    >>> expand("(Write|Say) it(| now(| please)):")
    ('Write it:', 'Write it now:', 'Write it now please:', 'Say it:', 'Say it now:', 'Say it now please:')
    """
    return tuple(dict.fromkeys(wording for pattern in patterns for wording in _sequence(_tokens(pattern))))


def _tokens(pattern: str) -> list[str]:
    """The pattern's marks and what is between them, the next one last."""
    return re.findall(r"[()|]|[^()|]+", pattern)[::-1]


def _sequence(tokens: list[str]) -> list[str]:
    """The instructions of a sequence of texts and choices, taken from ``tokens`` up to the mark that ends it."""
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
    """Instructions that ask for a task. No instruction is in two of them, so that each is new to what it judges."""

    training: tuple[str, ...]
    validation: tuple[str, ...] = ()
    """What the router is selected and its confidence calibrated on; those of training if empty."""
    evaluation: tuple[str, ...] = ()
    """What scores are measured on; those of training if empty."""


def read_instruction_templates(task: str) -> InstructionTemplates:
    """The instructions of a built-in task: the patterns in ``instructions/*/TASK.txt``.

    Those of evaluation were written by somebody who had not seen the others.
    """
    folder = resources.files("dynamo_mtl.tasks").joinpath("instructions")
    evaluation, validation, training = (
        expand(*folder.joinpath(name, f"{task}.txt").read_text(encoding="utf-8").splitlines())
        for name in ("evaluation", "validation", "training")
    )
    validation = _without(validation, evaluation)
    return InstructionTemplates(_without(training, evaluation + validation), validation, evaluation)


def _without(instructions: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    """Those whose words are not those of one of the others."""
    words = {tuple(re.findall(r"\w+", other.lower())) for other in others}
    return tuple(w for w in instructions if tuple(re.findall(r"\w+", w.lower())) not in words)


def __getattr__(name: str) -> type[InstructionTemplates]:
    """``Wordings``, as version 0.1.0 called them; goes with the next release."""
    if name == "Wordings":
        warnings.warn("Wordings is now InstructionTemplates", DeprecationWarning, stacklevel=2)
        return InstructionTemplates
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
