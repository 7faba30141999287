"""Code generation: Python from a description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_mtl.metrics.generation import collapse_blanks, parses
from dynamo_mtl.tasks.generation_task import GenerationTask
from dynamo_mtl.tasks.task import Answer, Example


class CodeGeneration(GenerationTask):
    """Python code; indentation and line breaks survive exactly, scoring collapses runs of blanks."""

    type = "code_generation"
    answer_key = "generated_text"
    column_names = {
        "description": ("description", "docstring", "intent", "text", "prompt"),
        "code": ("code", "snippet", "function"),
    }
    wordings = (
        "Write Python code:",
        "Write code for this description:",
        "Python:",
        "Implement this in Python:",
        "Turn this into Python code:",
        "Write a Python function for this:",
        "Code:",
        "Generate the Python code for:",
        "Program this:",
        "Which Python line does this?",
        "Please write the code:",
        "As Python:",
        "Translate this description into code:",
        "Complete the program:",
        "Show me the Python for this:",
    )
    evaluation_wordings = ("Give me Python that does the following:", "Code this up:")
    main_metric = "bleu"
    trivial_name = "code of the most similar training description"

    def read(self, row: Mapping[str, Any], where: str) -> Example:
        return Example(self.text_column(row, "description", where), None, self.text_column(row, "code", where))

    def score(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> dict[str, float]:
        predictions = self.texts(answers)
        references = [e.target for e in examples]
        scores = self.text_scores(list(map(collapse_blanks, predictions)), list(map(collapse_blanks, references)))
        return {
            **scores,
            "parses": sum(map(parses, predictions)) / len(predictions),
            "reference_parses": sum(map(parses, references)) / len(references),
            "uppercase_share": sum(any(c.isupper() for c in e.text) for e in examples) / len(examples),
        }
