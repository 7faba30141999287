"""Code generation: Python from a description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_mtl.metrics.generation import collapse_blanks, parses, sentence_bleu
from dynamo_mtl.tasks.generation_task import GenerationTask
from dynamo_mtl.tasks.instruction_templates import read_instruction_templates
from dynamo_mtl.tasks.task import Answer, Example


class CodeGeneration(GenerationTask):
    """Python code; indentation and line breaks survive exactly, scoring collapses runs of blanks.

    Of several beams, the likeliest that is valid Python is the answer.
    """

    type = "code_generation"
    answer_key = "generated_text"
    copies = True
    column_names = {
        "description": ("description", "docstring", "intent", "text", "prompt"),
        "code": ("code", "snippet", "function"),
    }
    instruction_templates = read_instruction_templates("code_generation")
    main_metric = "bleu"
    trivial_name = "code of the most similar training description"
    hub_task = "text-generation"

    def is_well_formed(self, text: str) -> bool:
        return parses(text)

    def read(self, row: Mapping[str, Any], where: str) -> Example:
        return Example(self.text_column(row, "description", where), None, self.text_column(row, "code", where))

    def compared(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> tuple[list[str], list[str]]:
        predictions, references = super().compared(answers, examples)
        return list(map(collapse_blanks, predictions)), list(map(collapse_blanks, references))

    def score(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> dict[str, float]:
        predictions, references = super().compared(answers, examples)
        return {
            **super().score(answers, examples),
            "sentence_bleu": sentence_bleu(*self.compared(answers, examples)),
            "parses": sum(map(parses, predictions)) / len(predictions),
            "reference_parses": sum(map(parses, references)) / len(references),
            "uppercase_share": sum(any(c.isupper() for c in e.text) for e in examples) / len(examples),
        }
