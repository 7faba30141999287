"""Base of the types whose answer is about a whole text, or about a pair of texts: labels and scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from dynamo_mtl.model.adapter import LoraConfig
from dynamo_mtl.model.heads import ClassificationHead, Head, HeadConfig
from dynamo_mtl.tasks.encoding import TaskView
from dynamo_mtl.tasks.task import Answer, Example, PublishedHead, Task
from dynamo_mtl.tasks.task_config import TaskConfig

TEXT_NAMES = ("text", "sentence", "content", "text_a", "sentence_a", "sentence1", "text1")
"""Names of the column of texts."""


class TextTaskConfig(TaskConfig):
    """Settings of the types whose answer is about a whole text."""

    text_pair: bool = False
    """Whether each example has a second text, in the column ``text_pair``, and the answer is about both: whether one
    follows from the other, says the same, or answers it."""
    pooling: Literal["first_and_mean", "first"] = "first_and_mean"
    """What the head reads of a window: the state of its first token and the mean state, or the first alone. With
    ``first`` it is the head of the classes of ``transformers``, so that ``dynamo export`` can write one of these."""
    classifier_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout in the head."""
    top_labels: int = Field(default=20, ge=1)
    """Most labels of which an answer gives the probability: the likeliest ones."""


class TextTask(Task):
    """Reads all windows of a text. The head's outputs for the windows are averaged."""

    lora = LoraConfig(rank=16, alpha=32.0, target_modules=["query", "value"])
    all_windows = True
    optional_columns = {"text_pair": ("text_pair", "sentence2", "text2", "hypothesis", "text_b", "sentence_b")}
    missing_context = "compares two texts, and there is one; give the second as text_pair"
    hub_task = "text-classification"
    starter_training = {"max_steps": 900, "batch_size": 32}
    problem_type: ClassVar[str]
    """What ``transformers`` calls the kind of head."""

    def __init__(self, name: str, config: TextTaskConfig) -> None:
        super().__init__(name, config)
        self._settings = config
        self.needs_context = self.needs_context or config.text_pair
        if config.pooling == "first":
            self.published_head = PublishedHead(
                "AutoModelForSequenceClassification", names_labels=True, problem_type=self.problem_type
            )

    def texts(self, row: Mapping[str, Any], where: str) -> tuple[str, str | None]:
        """The text of a row, and the second one where there are pairs."""
        pair = self.text_column(row, "text_pair", where) if self._settings.text_pair else None
        return self.text_column(row, "text", where), pair

    def split_group(self, example: Example) -> str:
        return example.text  # one premise has several hypotheses

    def outputs(self, head: Head, hidden: Tensor, view: TaskView) -> Tensor:
        """The head's outputs ``(examples, outputs)`` in fp32, averaged over the windows of each example."""
        assert isinstance(head, ClassificationHead)
        tokens = hidden[view.tokens]
        mask = view.mask[:, :, None].to(tokens.dtype)
        return view.averaged(head(tokens[:, 0], (tokens * mask).sum(dim=1) / mask.sum(dim=1)))

    def shown(self, answer: Answer) -> Answer:
        """With the probabilities of all labels in their order, or those of the likeliest ones."""
        most, by_label = self._settings.top_labels, answer.get("probabilities", {})
        if len(by_label) <= most:
            return answer
        return {**answer, "probabilities": dict(sorted(by_label.items(), key=lambda item: -item[1])[:most])}

    def text_head(self, outputs: int, kind: Literal["classification", "regression"] = "classification") -> HeadConfig:
        """A head with so many outputs for a text."""
        return HeadConfig(kind, outputs, dropout=self._settings.classifier_dropout, pooling=self._settings.pooling)
