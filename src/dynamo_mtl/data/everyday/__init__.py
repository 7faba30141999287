"""Everyday inputs of the five first task types, written by hand, by which routing is judged. Training never reads them.

They are what a new user might type: plain texts from anywhere, without an instruction.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

TYPES = ("sentiment", "qa", "summarization", "code_generation", "translation")
"""Task types with a set here; ``tasks.general_texts`` has patterns for the same."""


def everyday_rows(task_type: str) -> list[dict[str, Any]]:
    """The inputs of a task type, in the columns of its data; none for a type without a set."""
    if task_type not in TYPES:
        return []
    text = resources.files(__name__).joinpath(f"{task_type}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
