"""Summarization: one sentence for a document (XSum and its like)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_mtl.tasks.generation_task import GenerationTask
from dynamo_mtl.tasks.instruction_templates import read_instruction_templates
from dynamo_mtl.tasks.recognition import Guess, Table
from dynamo_mtl.tasks.task import Answer, Example


class Summarization(GenerationTask):
    """Abstractive summaries; the first window of a long document is read."""

    type = "summarization"
    answer_key = "summary_text"
    column_names = {"document": ("document", "article", "text"), "summary": ("summary", "highlights")}
    input_columns = {"document": "text"}
    least_words = 30  # a sentence or two have nothing to sum up
    instruction_templates = read_instruction_templates("summarization")
    main_metric = "rouge1"
    trivial_name = "first sentence"
    hub_task = "summarization"
    recognition_rank = 10

    @classmethod
    def recognise(cls, table: Table, name: str) -> Guess | None:
        """Two columns of texts, by their names."""
        return cls.guess_by_names(table, name)

    def read(self, row: Mapping[str, Any], where: str) -> Example:
        return Example(self.text_column(row, "document", where), None, self.text_column(row, "summary", where))

    def trivial_answers(self, train: Sequence[Example], examples: Sequence[Example]) -> list[Answer]:
        sentences = [re.split(r"(?<=[.!?])\s+", example.text.strip(), maxsplit=1)[0] for example in examples]
        return [{self.answer_key: sentence, "score": 0.0} for sentence in sentences]
