"""Settings of the model: its backbone, precision, and where the adapters begin."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.model.backbone import Backbone


class ModelConfig(BaseModel):
    """The backbone and where the router taps it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    base_model_name: str = "roberta-base"
    """Hub id, local folder, or ``minilm``."""
    revision: str | None = None
    """Branch, tag or commit of the backbone on the hub."""
    hidden_size: int | None = None
    """Checked against the backbone if given."""
    freeze_backbone: bool = True
    """``false`` trains the backbone itself, in one phase for all tasks: full fine-tuning, for comparison. Needs
    ``adapters: none``."""
    adapters: Literal["routed", "shared", "none"] = "routed"
    """``routed``: an adapter for each task and a router over them. For comparison, ``shared``: all adapters act on
    every input, as one LoRA of the summed rank; and ``none``. Both train in one phase and are given the task."""
    router_input: Literal["trunk", "last_hidden"] = "trunk"
    """What the router reads. ``trunk``: the layers below the tap. For comparison, ``last_hidden``: the last layer of a
    first pass without adapters, so that there are two passes (X-LoRA, Buehler and Buehler 2024, arXiv 2402.07148)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Type of the backbone and of all large products; adapters, heads and router keep fp32 parameters. ``auto`` is bf16
    where the hardware multiplies it fast, else fp32."""
    quantization: Literal["int8"] | None = None
    """``int8`` stores the matrices of the frozen layers in 8 bits, a quarter of fp32 (weight-only, by torchao: extra
    ``quantize``). Adapters can be trained with and without it."""
    tap_layer: int | None = Field(default=None, ge=0)
    """Layers below it carry no adapter and feed the router; a third of the depth if not given."""

    @model_validator(mode="after")
    def _trains_something(self) -> ModelConfig:
        if not self.freeze_backbone and self.adapters != "none":
            raise ConfigError(
                f"model.freeze_backbone: found false with model.adapters: {self.adapters}; adapters are trained over "
                "one frozen backbone, so use adapters: none for full fine-tuning"
            )
        if not self.freeze_backbone and self.quantization:
            raise ConfigError("model.quantization: int8 is for a frozen backbone, but freeze_backbone is false")
        return self


def check_against_backbone(config: ModelConfig, backbone: Backbone) -> None:
    """Refuse a configuration that contradicts the backbone. Raises ``ConfigError``."""
    shape = backbone.encoder.config
    if config.hidden_size is not None and config.hidden_size != shape.hidden_size:
        raise ConfigError(
            f"model.hidden_size: found {config.hidden_size}, but {backbone.name} has {shape.hidden_size}; "
            "correct it or leave it out"
        )
    if config.tap_layer is not None and config.tap_layer >= shape.num_layers:
        raise ConfigError(
            f"model.tap_layer: found {config.tap_layer}, but {backbone.name} has {shape.num_layers} layers; "
            f"use 0 to {shape.num_layers - 1}"
        )
