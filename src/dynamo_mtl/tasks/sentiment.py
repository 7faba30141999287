"""Sentiment: whether a text is for or against (SST-2 and its like)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from dynamo_mtl.tasks.classification import Classification, ClassificationConfig
from dynamo_mtl.tasks.instruction_templates import read_instruction_templates

SENTIMENTS = ({"negative", "positive"}, {"negative", "neutral", "positive"})


class SentimentConfig(ClassificationConfig):
    """Two labels, unless there are others."""

    labels: list[str] = Field(default=["negative", "positive"], min_length=2)


class Sentiment(Classification):
    """Classification with the columns and instructions of reviews."""

    type = "sentiment"
    Config = SentimentConfig
    column_names = {"text": ("text", "sentence", "review"), "label": ("label", "sentiment")}
    instruction_templates = read_instruction_templates("sentiment")
    recognition_rank = 7

    @classmethod
    def fits(cls, labels: Sequence[str], is_numbers: bool, name: str) -> bool:
        if is_numbers:
            return len(labels) == 2 and "sentiment" in name.lower()
        return {one.casefold() for one in labels} in SENTIMENTS
