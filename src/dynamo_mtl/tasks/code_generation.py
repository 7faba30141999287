"""Code generation: Python from a description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_mtl.metrics.generation import collapse_blanks, parses, sentence_bleu
from dynamo_mtl.tasks.generation_task import GenerationTask
from dynamo_mtl.tasks.instruction_templates import read_instruction_templates
from dynamo_mtl.tasks.recognition import Guess, Table
from dynamo_mtl.tasks.task import Answer, Example


class CodeGeneration(GenerationTask):
    """Writes Python code. Indentation and line breaks are kept exactly; scoring collapses runs of blanks.

    With several beams, the answer is the likeliest one that is valid Python.
    """

    type = "code_generation"
    answer_key = "generated_text"
    copies = True
    column_names = {
        "description": ("description", "docstring", "intent", "text", "prompt"),
        "code": ("code", "snippet", "function"),
    }
    input_columns = {"description": "text"}
    instruction_templates = read_instruction_templates("code_generation")
    main_metric = "bleu"
    trivial_name = "code of the most similar training description"
    hub_task = "text-generation"
    answer_form = "code"
    recognition_rank = 3

    def is_well_formed(self, text: str) -> bool:
        return parses(text)

    @classmethod
    def recognise(cls, table: Table, name: str) -> Guess | None:
        """Recognise a column of descriptions beside one of Python code."""
        code = [c for c in table.columns.values() if c.is_code]
        texts = [c for c in table.columns.values() if c.is_text and c not in code]
        names = cls.column_names
        named = {own: table.named(known) for own, known in names.items()}
        if len(code) == 1 and len(texts) == 1:
            found = dict(zip(names, (texts[0].name, code[0].name), strict=True))
            why = f"'{code[0].name}' holds Python"
        elif all(named.values()) and not any(table.columns[str(column)].is_label for column in named.values()):
            found = {own: str(column) for own, column in named.items()}
            why = f"it has {' and '.join(found.values())}"
        else:
            return None
        return cls.guess(table, name, why, found)

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
