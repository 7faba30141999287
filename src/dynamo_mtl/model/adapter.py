"""The adapter bank: the parameters of many LoRA adapters over one frozen encoder.

An adapter adds ``s · B A x`` to a linear layer (Hu et al. 2021, arXiv 2106.09685, eq. 3), with ``s = alpha / r`` or
``alpha / sqrt(r)`` (rank-stabilised, Kalajdzievski 2023, arXiv 2312.03732). Every adapter has its own parameters, so
that freezing, saving and optimising one is trivial; ``mixing.py`` computes with all of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from dynamo_mtl.model.encoder import SITES, EncoderConfig


class LoraConfig(BaseModel):
    """One adapter. ``target_modules`` are sites of a block, or ``all-linear``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    rank: int = Field(default=16, ge=1)
    """Rows of A and columns of B."""
    alpha: float = Field(default=32.0, gt=0)
    """What the adapter adds is multiplied by ``alpha / rank``."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """In training, of what A gives, before B."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Any of ``query``, ``key``, ``value``, ``attention.output``, ``intermediate`` and ``output``, or all of them."""
    use_rslora: bool = False
    """Multiply by ``alpha / √rank`` (Kalajdzievski 2023, arXiv 2312.03732), so that large ranks learn as fast as small
    ones."""

    @field_validator("target_modules")
    @classmethod
    def _known_sites(cls, value: list[str] | str) -> list[str] | str:
        unknown = [site for site in value if site not in SITES] if isinstance(value, list) else []
        if unknown or not value:
            raise ValueError(f"choose from {', '.join(SITES)} or all-linear")
        return value

    @property
    def sites(self) -> tuple[str, ...]:
        """The adapted linear layers of a block, in a fixed order."""
        return tuple(s for s in SITES if self.target_modules == "all-linear" or s in self.target_modules)

    @property
    def scaling(self) -> float:
        """What ``B A x`` is multiplied by."""
        return self.alpha / self.divisor

    @property
    def divisor(self) -> float:
        """What ``alpha`` is divided by: the rank, or its root."""
        return math.sqrt(self.rank) if self.use_rslora else float(self.rank)


def _key(layer: int, site: str) -> str:
    return f"{layer}_{site.replace('.', '-')}"  # parameter names must not contain a dot


class Adapter(nn.Module):
    """The parameters of one adapter: ``down`` (A, ``(r, in)``) and ``up`` (B, ``(out, r)``) for every site."""

    def __init__(self, config: LoraConfig, encoder: EncoderConfig, tap_layer: int) -> None:
        super().__init__()
        self.config = config
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        for layer in range(tap_layer, encoder.num_layers):
            for site in config.sites:
                inputs, outputs = encoder.site_shape(site)
                down = torch.empty(config.rank, inputs)
                nn.init.kaiming_uniform_(down, a=math.sqrt(5))
                self.down[_key(layer, site)] = nn.Parameter(down)
                # B starts at zero: a fresh adapter changes nothing.
                self.up[_key(layer, site)] = nn.Parameter(torch.zeros(outputs, config.rank))

    def pair(self, layer: int, site: str) -> tuple[Tensor, Tensor] | None:
        """(A, B) at a site, or None."""
        key = _key(layer, site)
        return (self.down[key], self.up[key]) if key in self.down else None


class AdapterBank(nn.Module):
    """All adapters, in the order of the tasks."""

    def __init__(self, configs: dict[str, LoraConfig], encoder: EncoderConfig, tap_layer: int) -> None:
        super().__init__()
        self.names = list(configs)
        # A list, since a dictionary of modules forbids names such as "train".
        self.adapters = nn.ModuleList(Adapter(config, encoder, tap_layer) for config in configs.values())
        self._sites = {
            (layer, site)
            for layer in range(tap_layer, encoder.num_layers)
            for config in configs.values()
            for site in config.sites
        }
        self._packs: dict[Any, Any] = {}
        self._packed_version = -1

    def __getitem__(self, name: str) -> Adapter:
        adapter = self.adapters[self.names.index(name)]
        assert isinstance(adapter, Adapter)
        return adapter

    def act_at(self, layer: int, site: str) -> bool:
        """Whether any adapter adapts this linear layer."""
        return (layer, site) in self._sites

    def train(self, mode: bool = True) -> AdapterBank:
        """Set the mode. A change drops all packed matrices: fused optimizers change parameters without a trace."""
        if mode != self.training:
            self._packs.clear()
        return super().train(mode)

    def packed(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what ``make`` packs. In evaluation without gradient it is cached until ``forget_changed`` drops it."""
        if torch.is_grad_enabled() or self.training:
            return make()
        if key not in self._packs:
            self._packs[key] = make()
        return self._packs[key]

    def forget_changed(self) -> None:
        """Drop all packed matrices if a parameter has changed since they were packed."""
        parameters = self._parameters_in_order
        # Tensors that were made in inference mode have no version, so a change of theirs cannot be seen.
        known = not any(parameter.is_inference() for parameter in parameters)
        version = sum(parameter._version for parameter in parameters) if known else -1
        if version != self._packed_version or not known:
            self._packs.clear()
            self._packed_version = version

    @cached_property
    def _parameters_in_order(self) -> list[nn.Parameter]:
        return list(self.parameters())
