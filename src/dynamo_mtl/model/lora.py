"""The adapter bank: many LoRA adapters over one frozen encoder, mixed per input.

An adapter adds ``s · B A x`` to a linear layer (Hu et al. 2021, arXiv 2106.09685, eq. 3), with ``s = alpha / r`` or
``alpha / sqrt(r)`` (rank-stabilised, Kalajdzievski 2023, arXiv 2312.03732). Every adapter has its own parameters, so
that freezing, saving and optimising one is trivial; computing is packed and loops over no adapter:

- ``ConcatenatedMix``: ``z = x A_catᵀ · w``, ``y += z B_catᵀ`` over the concatenated ranks; exact for any soft mixture
- ``TiledMix``: for top-k, tokens that share an adapter are laid into fixed tiles, then one batched matmul
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from dynamo_mtl.model.encoder import SITES, EncoderConfig

TILE = 32
"""Tokens in a tile of ``TiledMix``."""
TILED_OVERHEAD = 2.0
"""How much work gathering and scattering tiles is taken to add, as a factor on that of their products."""


class LoraConfig(BaseModel):
    """One adapter. ``target_modules`` are sites of a block, or ``all-linear``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    use_rslora: bool = False

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
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


class Mix(Protocol):
    """Adapters of one batch, called by the encoder at every linear layer."""

    def __call__(self, layer: int, site: str, inputs: Tensor) -> Tensor | None:
        """``(tokens, in)`` → what is added to the output ``(tokens, out)``; None where no adapter sits."""
        ...


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
                inputs = encoder.intermediate_size if site == "output" else encoder.hidden_size
                outputs = encoder.intermediate_size if site == "intermediate" else encoder.hidden_size
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

    def __getitem__(self, name: str) -> Adapter:
        adapter = self.adapters[self.names.index(name)]
        assert isinstance(adapter, Adapter)
        return adapter

    def mix(
        self,
        weights: Tensor,
        rows: Tensor,
        dtype: torch.dtype,
        active: Sequence[int] | None = None,
        top_k: int | None = None,
    ) -> Mix:
        """Plan one batch: which token gets which adapters with what weight.

        Args:
            weights: ``(examples, adapters)`` mixing weights.
            rows: ``(tokens,)`` example of each token.
            dtype: type of the products (parameters stay as they are).
            active: adapters that can have a weight other than zero (all if None); the others cost nothing.
            top_k: promise that at most that many weights a row are not zero; allows the tiled form.
        """
        chosen = list(range(len(self.adapters))) if active is None else list(active)
        adapters = [self[self.names[index]] for index in chosen]
        weights = weights[:, chosen]
        if top_k is not None and top_k < len(chosen):
            ranks = [adapter.config.rank for adapter in adapters]
            tiled_work = top_k * (len(rows) + len(chosen) * TILE) * max(ranks) * TILED_OVERHEAD
            if tiled_work < len(rows) * sum(ranks):
                return TiledMix(adapters, weights, rows, dtype, top_k, self.training)
        return ConcatenatedMix(adapters, weights, rows, dtype, self.training)


class ConcatenatedMix:
    """Soft mixing by concatenated ranks; the per-token, per-rank scales are made once a batch."""

    def __init__(
        self, adapters: Sequence[Adapter], weights: Tensor, rows: Tensor, dtype: torch.dtype, training: bool
    ) -> None:
        self.adapters, self.dtype, self.training = adapters, dtype, training
        self.token_weights = weights[rows]
        self.scales: dict[tuple[int, ...], tuple[Tensor, Tensor | None]] = {}
        self.packed: dict[tuple[int, str], tuple[Tensor, Tensor, Tensor, Tensor | None] | None] = {}

    def _scale(self, members: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """Scale ``(tokens, ranks)`` and, in training, the keep probability of each rank ``(ranks,)``."""
        if members not in self.scales:
            configs = [self.adapters[m].config for m in members]
            device = self.token_weights.device
            scaling = torch.tensor([c.scaling for c in configs], device=device)
            ranks = torch.tensor([c.rank for c in configs], device=device)
            width = sum(c.rank for c in configs)
            per_adapter = self.token_weights[:, list(members)] * scaling
            scale = per_adapter.repeat_interleave(ranks, dim=1, output_size=width).to(self.dtype)
            keep = torch.tensor([1 - c.dropout for c in configs], device=device)
            drops = self.training and any(c.dropout > 0 for c in configs)
            self.scales[members] = (scale, keep.repeat_interleave(ranks, output_size=width) if drops else None)
        return self.scales[members]

    def _pack(self, layer: int, site: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None] | None:
        pairs = [(m, pair) for m, adapter in enumerate(self.adapters) if (pair := adapter.pair(layer, site))]
        if not pairs:
            return None
        scale, keep = self._scale(tuple(m for m, _ in pairs))
        down = torch.cat([down for _, (down, _) in pairs]).to(self.dtype)
        up = torch.cat([up for _, (_, up) in pairs], dim=1).to(self.dtype)
        return down, up, scale, keep

    def __call__(self, layer: int, site: str, inputs: Tensor) -> Tensor | None:
        """See ``Mix``."""
        if (layer, site) not in self.packed:
            self.packed[layer, site] = self._pack(layer, site)
        packed = self.packed[layer, site]
        if packed is None:
            return None
        down, up, scale, keep = packed
        low = F.linear(inputs, down) * scale
        if keep is not None:
            low = low * ((torch.rand_like(low, dtype=torch.float32) < keep) / keep).to(low.dtype)
        return F.linear(low, up)


class TiledMix:
    """Top-k by gathered blocks: tiles of tokens that share one adapter, one batched matmul for all.

    The number of tiles is bounded by shapes alone, so that nothing waits for the device.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        weights: Tensor,
        rows: Tensor,
        dtype: torch.dtype,
        top_k: int,
        training: bool,
    ) -> None:
        self.adapters, self.dtype, self.training = adapters, dtype, training
        self.tokens = len(rows)
        value, chosen = weights.topk(top_k, dim=1)
        adapter, order = chosen[rows].flatten().sort(stable=True)
        counts = torch.zeros(len(adapters), dtype=torch.long, device=rows.device)
        counts.scatter_add_(0, adapter, torch.ones_like(adapter))
        tiles = (counts + TILE - 1) // TILE
        first_token, first_tile = counts.cumsum(0) - counts, tiles.cumsum(0) - tiles
        place = torch.arange(len(adapter), device=rows.device) - first_token[adapter]
        self.slots = first_tile[adapter] * TILE + place
        self.size = len(adapter) // TILE + len(adapters)
        self.tile_adapter = torch.bucketize(
            torch.arange(self.size, device=rows.device), tiles.cumsum(0), right=True
        ).clamp_max(len(adapters) - 1)
        self.token = order // top_k
        scaling = torch.tensor([a.config.scaling for a in adapters], device=rows.device)
        self.weight = (value[rows].flatten()[order] * scaling[adapter]).to(dtype)[:, None]
        keep = torch.tensor([1 - a.config.dropout for a in adapters], device=rows.device)
        drops = training and any(a.config.dropout > 0 for a in adapters)
        self.keep = keep[self.tile_adapter][:, None, None] if drops else None
        self.rank = max(a.config.rank for a in adapters)
        self.packed: dict[tuple[int, str], tuple[Tensor, Tensor] | None] = {}

    def _pack(self, layer: int, site: str) -> tuple[Tensor, Tensor] | None:
        pairs = [adapter.pair(layer, site) for adapter in self.adapters]
        present = next((pair for pair in pairs if pair), None)
        if present is None:
            return None
        none = (present[0].new_zeros(0, present[0].shape[1]), present[1].new_zeros(present[1].shape[0], 0))
        down = torch.stack([F.pad(d, (0, 0, 0, self.rank - len(d))) for d, _ in (p or none for p in pairs)])
        up = torch.stack([F.pad(u, (0, self.rank - u.shape[1])) for _, u in (p or none for p in pairs)])
        return (
            down.to(self.dtype)[self.tile_adapter].transpose(1, 2),
            up.to(self.dtype)[self.tile_adapter].transpose(1, 2),
        )

    def __call__(self, layer: int, site: str, inputs: Tensor) -> Tensor | None:
        """See ``Mix``."""
        if (layer, site) not in self.packed:
            self.packed[layer, site] = self._pack(layer, site)
        packed = self.packed[layer, site]
        if packed is None:
            return None
        down, up = packed
        tiles = inputs.new_zeros(self.size * TILE, inputs.shape[1]).index_copy(
            0, self.slots, inputs.index_select(0, self.token)
        )
        low = torch.bmm(tiles.view(self.size, TILE, -1), down)
        if self.keep is not None:
            low = low * ((torch.rand_like(low, dtype=torch.float32) < self.keep) / self.keep).to(low.dtype)
        added = torch.bmm(low, up).view(self.size * TILE, -1).index_select(0, self.slots) * self.weight
        return added.new_zeros(self.tokens, added.shape[1]).index_add(0, self.token, added)
