"""Many adapters over one batch, mixed per input. It computes packed, and loops over no adapter.

- ``ConcatenatedMix``: ``z = x A_catᵀ · w``, ``y += z B_catᵀ`` over the concatenated ranks; exact for any soft mixture
- ``GroupedMix``: for top-k, tokens that share an adapter lie together and meet its matrices in one grouped product
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.model import hardware
from dynamo_mtl.model.adapter import AdapterBank

GROUPED_OVERHEAD = 1.5
"""How much slower a grouped product is taken to be than a plain one of the same work."""
GROUPED_OVERHEAD_AMX = 20.0
"""The same on a CPU with AMX, where compiling small products for new sizes takes longer than they do."""
GROUP_COST = 512
"""What a group costs by itself, in tokens times ranks."""
RANK_MULTIPLE = 8
"""Grouped products want rows that are multiples of 16 bytes."""


class Mix(Protocol):
    """Adapters of one batch, called by the encoder wherever linear layers share an input."""

    sorting: tuple[Tensor, Tensor] | None
    """``(tokens,)`` the order in which the tokens have to be given, and where each token of the batch then lies; None
    for the batch's own order."""

    def __call__(self, layer: int, sites: Sequence[str], inputs: Tensor, output: Tensor) -> Tensor:
        """``(tokens, in)``, ``(tokens, out)`` with the sites side by side → output with what the adapters add."""
        ...

    def act_at(self, layer: int, site: str) -> bool:
        """Whether some adapter of the bank sits there."""
        ...


def mix_adapters(
    bank: AdapterBank,
    weights: Tensor,
    rows: Tensor,
    dtype: torch.dtype,
    active: Sequence[int] | None = None,
    top_k: int | None = None,
) -> Mix:
    """Plan one batch: which token gets which adapters with what weight.

    Args:
        bank: the adapters.
        weights: ``(examples, adapters)`` mixing weights.
        rows: ``(tokens,)`` example of each token.
        dtype: type of the products (parameters stay as they are).
        active: adapters that can have a weight other than zero (all if None); the others cost nothing.
        top_k: promise that at most that many weights a row are not zero; allows the grouped form.
    """
    bank.forget_changed()
    if top_k is not None and top_k < len(bank.adapters if active is None else active):
        ranks = [bank[name].config.rank for name in bank.names]
        tiles = rows.device.type == "cpu" and dtype == torch.bfloat16 and hardware.has_amx()
        overhead = GROUPED_OVERHEAD_AMX if tiles else GROUPED_OVERHEAD
        grouped_work = top_k * len(rows) * max(ranks) * overhead + len(ranks) * GROUP_COST
        if grouped_work < len(rows) * sum(ranks if active is None else [ranks[index] for index in active]):
            return GroupedMix(bank, weights, rows, dtype, top_k)
    return ConcatenatedMix(bank, weights, rows, dtype, active)


class ConcatenatedMix:
    """Soft mixing by concatenated ranks; the per-token, per-rank scales are made once a batch."""

    sorting: tuple[Tensor, Tensor] | None = None

    def __init__(
        self,
        bank: AdapterBank,
        weights: Tensor,
        rows: Tensor,
        dtype: torch.dtype,
        active: Sequence[int] | None = None,
    ) -> None:
        chosen = list(range(len(bank.names))) if active is None else list(active)
        self.bank, self.chosen, self.dtype = bank, tuple(chosen), dtype
        self.adapters = [bank[bank.names[index]] for index in chosen]
        self.token_weights = weights[:, chosen][rows]
        self.scales: dict[tuple[int, ...], tuple[Tensor, Tensor | None]] = {}

    def act_at(self, layer: int, site: str) -> bool:
        """See ``Mix``."""
        return self.bank.act_at(layer, site)

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
            drops = self.bank.training and any(c.dropout > 0 for c in configs)
            self.scales[members] = (scale, keep.repeat_interleave(ranks, output_size=width) if drops else None)
        return self.scales[members]

    def _pack(self, layer: int, sites: Sequence[str]) -> _Concatenated:
        """A of all sites and adapters as one matrix, B of each site, and whose ranks they are."""
        downs: list[Tensor] = []
        ups: list[Tensor | None] = []
        members: list[int] = []
        for site in sites:
            pairs = [(m, pair) for m, adapter in enumerate(self.adapters) if (pair := adapter.pair(layer, site))]
            downs += [down for _, (down, _) in pairs]
            ups.append(torch.cat([up for _, (_, up) in pairs], dim=1).to(self.dtype) if pairs else None)
            members += [m for m, _ in pairs]
        return _Concatenated(torch.cat(downs).to(self.dtype) if downs else None, ups, tuple(members))

    def __call__(self, layer: int, sites: Sequence[str], inputs: Tensor, output: Tensor) -> Tensor:
        """See ``Mix``."""
        key = ("concatenated", layer, sites, self.chosen, self.dtype)
        is_usual = len(self.chosen) in (1, len(self.bank.names))  # other choices are too many to keep
        packed = self.bank.packed(key, lambda: self._pack(layer, sites)) if is_usual else self._pack(layer, sites)
        if packed.down is None:
            return output
        scale, keep = self._scale(packed.members)
        low = F.linear(inputs, packed.down) * scale
        if keep is not None:
            low = low * ((torch.rand_like(low, dtype=torch.float32) < keep) / keep).to(low.dtype)
        parts = output.split(output.shape[1] // len(sites), dim=1)
        lows = low.split([0 if up is None else up.shape[1] for up in packed.ups], dim=1)
        added = zip(parts, lows, packed.ups, strict=True)
        if torch.is_grad_enabled():
            return _side_by_side([p if up is None else torch.addmm(p, own, up.T) for p, own, up in added])
        for part, own, up in added:
            if up is not None:
                part.addmm_(own, up.T)
        return output


@dataclass(frozen=True)
class _Concatenated:
    """All adapters of some sites, packed for ``ConcatenatedMix``."""

    down: Tensor | None
    """``(ranks of all sites, in)``; None where no adapter sits."""
    ups: list[Tensor | None]
    """``(out, ranks)`` of each site."""
    members: tuple[int, ...]
    """The adapter of each stretch of ranks."""


class GroupedMix:
    """Top-k by groups: tokens lie sorted by their adapter, and each group meets its matrices in one grouped product.

    With one adapter a token, the model sorts its tokens once (``sorting``), so that no layer gathers anything. Nothing
    waits for the device.
    """

    sorting: tuple[Tensor, Tensor] | None = None

    def __init__(self, bank: AdapterBank, weights: Tensor, rows: Tensor, dtype: torch.dtype, top_k: int) -> None:
        self.bank, self.dtype = bank, dtype
        configs = [bank[name].config for name in bank.names]
        value, chosen = weights.topk(top_k, dim=1)
        adapter, entries = chosen[rows].flatten().sort(stable=True)
        counts = torch.zeros(len(configs), dtype=torch.long, device=rows.device)
        counts.scatter_add_(0, adapter, torch.ones_like(adapter))
        self.ends = counts.cumsum(0).to(torch.int32)
        self.token = entries // top_k
        if top_k == 1:
            numbers = torch.arange(len(entries), device=rows.device)
            self.sorting = self.token, torch.empty_like(entries).scatter_(0, entries, numbers)
        scaling = torch.tensor([c.scaling for c in configs], device=rows.device)
        self.weight = (value[rows].flatten()[entries] * scaling[adapter]).to(dtype)[:, None]
        keep = torch.tensor([1 - c.dropout for c in configs], device=rows.device)
        drops = bank.training and any(c.dropout > 0 for c in configs)
        self.keep = keep[adapter][:, None] if drops else None
        widest = max(c.rank for c in configs)
        self.rank = -(-widest // RANK_MULTIPLE) * RANK_MULTIPLE
        self.runs: list[tuple[int, int, int]] = []
        if rows.device.type == "cpu" and not torch.is_grad_enabled():
            # Here the library's grouped product visits absent adapters too, and nothing waits for a device anyway.
            ends = self.ends.tolist()
            self.runs = [(n, first, last) for n, (first, last) in enumerate(pairwise([0, *ends])) if last > first]

    def act_at(self, layer: int, site: str) -> bool:
        """See ``Mix``."""
        return self.bank.act_at(layer, site)

    def _pack(self, layer: int, sites: Sequence[str]) -> tuple[Tensor, Tensor] | None:
        """A of the adapted sites side by side, ``(adapters, in, ranks)``, and B, ``(adapters, ranks, sites · out)``.

        B has the blocks of the sites on its diagonal, so that it is one product for all of them.
        """
        downs: list[Tensor] = []
        ups: list[Tensor] = []
        for number, site in enumerate(sites):
            pairs = [self.bank[name].pair(layer, site) for name in self.bank.names]
            present = next((pair for pair in pairs if pair), None)
            if present is None:
                continue
            (_, inputs), (width, _) = present[0].shape, present[1].shape
            none = (present[0].new_zeros(0, inputs), present[1].new_zeros(width, 0))
            filled = [pair or none for pair in pairs]
            downs.append(torch.stack([F.pad(d, (0, 0, 0, self.rank - len(d))) for d, _ in filled]))
            around = (number * width, (len(sites) - 1 - number) * width)
            ups.append(torch.stack([F.pad(u.T, (*around, 0, self.rank - u.shape[1])) for _, u in filled]))
        if not downs:
            return None
        return torch.cat(downs, dim=1).to(self.dtype).transpose(1, 2), torch.cat(ups, dim=1).to(self.dtype)

    def __call__(self, layer: int, sites: Sequence[str], inputs: Tensor, output: Tensor) -> Tensor:
        """See ``Mix``."""
        packed = self.bank.packed(("grouped", layer, sites, self.dtype), lambda: self._pack(layer, sites))
        if packed is None:
            return output
        down, up = packed
        low = self._product(inputs if self.sorting else inputs.index_select(0, self.token), down)
        low = low * self.weight
        if self.keep is not None:
            low = low * ((torch.rand_like(low, dtype=torch.float32) < self.keep) / self.keep).to(low.dtype)
        if not self.sorting:
            return output.index_add(0, self.token, self._product(low, up))
        if not self.runs:
            return output + self._product(low, up)
        for adapter, first, last in self.runs:
            output[first:last].addmm_(low[first:last], up[adapter])
        return output

    def _product(self, rows: Tensor, matrices: Tensor) -> Tensor:
        """Every row by the matrix of its adapter: ``(rows, in), (adapters, in, out)`` → ``(rows, out)``."""
        if not self.runs:
            return F.grouped_mm(rows, matrices, offs=self.ends)
        products = rows.new_empty(len(rows), matrices.shape[2])
        for adapter, first, last in self.runs:
            torch.mm(rows[first:last], matrices[adapter], out=products[first:last])
        return products


def _side_by_side(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
