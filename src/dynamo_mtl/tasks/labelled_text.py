"""Base of the types with a fixed set of labels for a text: one of them, or several."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, PositiveFloat, field_validator, model_validator
from torch import Tensor

from dynamo_mtl.tasks.text_task import TextTask, TextTaskConfig


def each_once(labels: list[str]) -> list[str]:
    """Check that no label is empty or given twice, and drop blanks around them. Raises ``ValueError`` otherwise."""
    seen: set[str] = set()
    for label in labels:
        name = label.strip()
        if not name or name in seen:
            what = f"'{name}' is there twice" if name else "a label is empty"
            raise ValueError(f"{what}; give each label once, without blanks around it")
        seen.add(name)
    return [label.strip() for label in labels]


class LabelledTextConfig(TextTaskConfig):
    """Labels and their weights."""

    labels: list[str] = Field(min_length=2)
    """Names of the labels, each once."""
    class_weights: Literal["balanced"] | list[PositiveFloat] | None = None
    """How much each label counts in the loss."""

    _labels_once = field_validator("labels")(each_once)

    @model_validator(mode="after")
    def _weight_for_each(self) -> Self:
        if isinstance(self.class_weights, list) and len(self.class_weights) != len(self.labels):
            raise ValueError(
                f"class_weights has {len(self.class_weights)} numbers for {len(self.labels)} labels; give one for each"
            )
        return self


class LabelledText(TextTask):
    """Knows the weights of its labels."""

    def __init__(self, name: str, config: LabelledTextConfig) -> None:
        super().__init__(name, config)
        self._labels, weights = config.labels, config.class_weights
        self._weights = torch.tensor(weights) if isinstance(weights, list) else None

    def weights_like(self, logits: Tensor) -> Tensor | None:
        """The weights of the labels ``(labels,)``, of the type and on the device of logits; None if all are alike."""
        return None if self._weights is None else self._weights.to(logits)

    def output_names(self) -> list[str]:
        return self._labels
