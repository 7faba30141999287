"""Code generation: Python from a description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_mtl.metrics.generation import collapse_blanks, parses
from dynamo_mtl.tasks.generation_task import GenerationTask
from dynamo_mtl.tasks.task import Answer, Example
from dynamo_mtl.tasks.wordings import expand


class CodeGeneration(GenerationTask):
    """Python code; indentation and line breaks survive exactly, scoring collapses runs of blanks."""

    type = "code_generation"
    answer_key = "generated_text"
    column_names = {
        "description": ("description", "docstring", "intent", "text", "prompt"),
        "code": ("code", "snippet", "function"),
    }
    wordings = expand(
        "(Write|Generate|Show me) (Python|the code|Python code)(:| for this:)",
        "(Python|Code|As Python|In Python|Python code|Source code|As code):",
        "(Implement|Program|Code) (this|the following)(:| in Python:)",
        "(Turn|Convert|Translate) this (|description )(into|to) (code|Python):",
        "Write a (Python function|function|script|line of Python) (for this|that does this):",
        "Which (Python line|code|statement) does this?",
        "(Please write|Can you write) the (code|program)(:|)",
        "Complete the (program|code|function):",
        "How do I (write|do|express) this in Python?",
        "(Snippet|Programming|Coding task|Line of code|Implementation|Function|Python 3|Developer task):",
        "(Automate|Encode|Formalize) (this|it)(:| with Python:)",
        "(Solve|Do) (this|it) (in Python|with code)(:|)",
        "(What|Which) (command|call|expression|function) (does|performs) this?",
        "What is the (Python|code|syntax) for (this|that)?",
        "(Make|Create|Build|Develop|Draft) (a snippet|a program|the function|some code)(:| for this:)",
        "(Give|Return|Output) (only |)(code|a Python line)(:| for this:)",
        "(I need|I want) (code|a line of Python|a program) (for|doing) this:",
        "Pseudo-code to (Python|code):",
    )
    evaluation_wordings = (
        "Give me Python that does the following:",
        "Code this up:",
        "What would this look like as a Python statement?",
        "Produce source code matching this description:",
        "Script it:",
        "Express the instruction below as a program:",
    )
    main_metric = "bleu"
    trivial_name = "code of the most similar training description"

    def read(self, row: Mapping[str, Any], where: str) -> Example:
        return Example(self.text_column(row, "description", where), None, self.text_column(row, "code", where))

    def compared(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> tuple[list[str], list[str]]:
        predictions, references = super().compared(answers, examples)
        return list(map(collapse_blanks, predictions)), list(map(collapse_blanks, references))

    def score(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> dict[str, float]:
        predictions, references = super().compared(answers, examples)
        return {
            **super().score(answers, examples),
            "parses": sum(map(parses, predictions)) / len(predictions),
            "reference_parses": sum(map(parses, references)) / len(references),
            "uppercase_share": sum(any(c.isupper() for c in e.text) for e in examples) / len(examples),
        }
