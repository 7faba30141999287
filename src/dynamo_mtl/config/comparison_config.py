"""What ``dynamo compare`` trains and scores: the systems there are, and the settings of a comparison."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.messages import did_you_mean

SYSTEMS = {
    "dynamo": "the router chooses one adapter and head for every input, in one pass",
    "oracle": "the same model given the true task",
    "soft": "the same model, adapters mixed by the router's weights, the likeliest task's head",
    "single_task": "the adapters as phase 1 left them, given the true task",
    "single_lora": "one LoRA of the summed rank for all tasks, given the true task",
    "full_finetuning": "no adapters, all weights of the backbone trained on all tasks, given the true task",
    "two_pass": "the adapters of phase 1, a router that reads the last layer of a first pass (after X-LoRA)",
    "nearest_centroid": "the same adapters, chosen by the nearest task mean of trunk features, no training",
    "arrow": "the same adapters, chosen by their own directions, no training (after Arrow)",
    "uniform": "all adapters with equal weights, given the true task's head",
    "random": "an adapter and head at random",
    "base": "the same model without adapters, given the true task's head",
    "trivial": "no learning at all",
}
"""Every system that can be compared, with a description, in the order of the result tables."""

TRAINED_APART = ("single_lora", "full_finetuning", "two_pass")
"""Systems that are not part of a trained checkpoint; ``dynamo compare`` trains them."""

OWN_TRAINING = {
    "single_lora": ({"model.adapters": "shared"}, "lora_lr"),
    "full_finetuning": (
        {"model.adapters": "none", "model.freeze_backbone": False, "model.quantization": None},
        "backbone_lr",
    ),
}
"""Systems that are trained from the start: the settings that make them, and the learning rate that is searched."""


class CompareConfig(BaseModel):
    """What ``dynamo compare`` trains and scores."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    systems: list[str] = [*SYSTEMS]
    """Systems to score. Those that need a training of their own are trained first."""
    learning_rates: dict[str, Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]] = {
        "single_lora": [5e-4, 1e-3, 2e-3],
        "full_finetuning": [5e-5, 1e-4, 3e-4],
    }
    """Candidate learning rates of each separately trained system. If there are several, each is tried for a share of
    the training, and the one with the best validation loss is used."""
    trial_share: float = Field(default=0.1, gt=0, le=1)
    """Share of the training for which each candidate learning rate is tried."""
    generation_examples: int | None = Field(default=None, ge=1)
    """Score only this many examples of each generation task, the first ones; all if not given. Answers of these tasks
    take most of the time."""
    timing_inputs: int = Field(default=8, ge=1)
    """Inputs of each task in the sample on which every system is timed."""
    timing_rounds: int = Field(default=3, ge=1)
    """How often each system answers the timing sample; the median time is reported."""

    @model_validator(mode="after")
    def _known_systems(self) -> CompareConfig:
        for key, names, known in (
            ("systems", self.systems, SYSTEMS),
            ("learning_rates", self.learning_rates, OWN_TRAINING),
        ):
            unknown = [name for name in names if name not in known]
            if unknown:
                raise ConfigError(f"compare.{key}: no system '{unknown[0]}'; {did_you_mean(unknown[0], known)}")
        return self
