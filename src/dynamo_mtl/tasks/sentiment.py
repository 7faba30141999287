"""Sentiment: whether a text is for or against (SST-2 and its like)."""

from __future__ import annotations

from pydantic import Field

from dynamo_mtl.tasks.classification import Classification, ClassificationConfig
from dynamo_mtl.tasks.instruction_templates import read_instruction_templates


class SentimentConfig(ClassificationConfig):
    """Two labels, unless there are others."""

    labels: list[str] = Field(default=["negative", "positive"], min_length=2)


class Sentiment(Classification):
    """Classification with the columns and instructions of reviews."""

    type = "sentiment"
    Config = SentimentConfig
    column_names = {"text": ("text", "sentence", "review"), "label": ("label", "sentiment")}
    instruction_templates = read_instruction_templates("sentiment")
