"""Applies many adapters to one batch of packed tokens, mixed by weights of each input.

``mix_adapters`` chooses between two forms that compute the same:

- ``ConcatenatedMix``: ``z = x A_catᵀ · w``, ``y += z B_catᵀ`` over the concatenated ranks; exact for any soft mixture
- ``GroupedMix``: for top-k; sorts tokens by adapter and multiplies each group by the matrices of its adapter
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
"""Assumed cost of a grouped product, relative to a plain product with the same number of operations."""
GROUPED_OVERHEAD_AMX = 20.0
"""The same on a CPU with AMX, where compiling small products for new sizes takes longer than computing them."""
GROUP_COST = 512
"""Assumed fixed cost of a group, in tokens times ranks."""
RANK_MULTIPLE = 8
"""Ranks are padded to a multiple of it: grouped products expect rows whose size is a multiple of 16 bytes."""


class Mix(Protocol):
    """The adapters of one batch. The encoder calls it once for all linear layers that share an input."""

    sorting: tuple[Tensor, Tensor] | None
    """The order in which tokens must be passed, and the place of each token in that order, both ``(tokens,)``; None for
    the batch's own order."""

    def __call__(self, layer: int, sites: Sequence[str], inputs: Tensor, output: Tensor) -> Tensor:
        """Add the adapters to ``output``, ``(tokens, out)`` with the sites side by side; inputs: ``(tokens, in)``."""
        ...

    def act_at(self, layer: int, site: str) -> bool:
        """Whether any adapter of the bank adapts this linear layer."""
        ...


def mix_adapters(
    bank: AdapterBank,
    weights: Tensor,
    rows: Tensor,
    dtype: torch.dtype,
    active: Sequence[int] | None = None,
    top_k: int | None = None,
) -> Mix:
    """Plan the mix of one batch: which adapters each token gets, and with what weights.

    Args:
        bank: the adapters.
        weights: ``(examples, adapters)`` mixing weights.
        rows: ``(tokens,)`` example of each token.
        dtype: type of the products; parameters keep their own.
        active: adapters that may have a non-zero weight (all if None); the others cost nothing.
        top_k: no row has more non-zero weights than this; needed for the grouped form.
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
    """Mixes with any weights, by concatenating the ranks of all adapters.

    The scale of each token and rank is computed once per batch.
    """

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
        """Concatenate A over sites and adapters, and B over the adapters of each site."""
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
        is_usual = len(self.chosen) in (1, len(self.bank.names))  # there are too many others to cache
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
    """``(ranks of all sites, in)``; None if no adapter adapts these sites."""
    ups: list[Tensor | None]
    """``(out, ranks)`` of each site; None if no adapter adapts it."""
    members: tuple[int, ...]
    """The adapter that each block of ranks belongs to."""


class GroupedMix:
    """Mixes the ``top_k`` adapters of each token in groups: one group for all tokens that use the same adapter.

    An entry is a pair of a token and one of its adapters. Entries are sorted by adapter, so that a grouped product
    multiplies each group by the matrices of its adapter. If ``top_k`` is 1, entries are tokens, and the model sorts
    its tokens once (``sorting``); otherwise every call gathers its inputs and adds up its outputs. On a GPU, nothing
    waits for the device.
    """

    sorting: tuple[Tensor, Tensor] | None = None

    def __init__(self, bank: AdapterBank, weights: Tensor, rows: Tensor, dtype: torch.dtype, top_k: int) -> None:
        self.bank, self.dtype = bank, dtype
        configs = [bank[name].config for name in bank.names]
        # 1. Sort the entries, (tokens · top_k,), by adapter. If top_k is 1 and three tokens use adapters 1, 0 and 1,
        #    adapter is [0, 1, 1] and entries is [1, 0, 2].
        value, chosen = weights.topk(top_k, dim=1)
        adapter, entries = chosen[rows].flatten().sort(stable=True)
        # 2. Find where the group of each adapter ends: [1, 3] in the example.
        counts = torch.zeros(len(configs), dtype=torch.long, device=rows.device)
        counts.scatter_add_(0, adapter, torch.ones_like(adapter))
        self.ends = counts.cumsum(0).to(torch.int32)
        # 3. Find the token of each entry. If top_k is 1, this is the order in which the model sorts its tokens.
        self.token = entries // top_k
        if top_k == 1:
            numbers = torch.arange(len(entries), device=rows.device)
            self.sorting = self.token, torch.empty_like(entries).scatter_(0, entries, numbers)
        # 4. Scale each entry by its mixing weight and the scaling of its adapter.
        scaling = torch.tensor([c.scaling for c in configs], device=rows.device)
        self.weight = (value[rows].flatten()[entries] * scaling[adapter]).to(dtype)[:, None]
        keep = torch.tensor([1 - c.dropout for c in configs], device=rows.device)
        drops = bank.training and any(c.dropout > 0 for c in configs)
        self.keep = keep[adapter][:, None] if drops else None
        # 5. Pad all adapters to one rank, so that their matrices can be stacked.
        widest = max(c.rank for c in configs)
        self.rank = -(-widest // RANK_MULTIPLE) * RANK_MULTIPLE
        self.runs: list[tuple[int, int, int]] = []
        if rows.device.type == "cpu" and not torch.is_grad_enabled():
            # On a CPU, PyTorch's grouped product also visits adapters without tokens, so loop over the others instead.
            ends = self.ends.tolist()
            self.runs = [(n, first, last) for n, (first, last) in enumerate(pairwise([0, *ends])) if last > first]

    def act_at(self, layer: int, site: str) -> bool:
        """See ``Mix``."""
        return self.bank.act_at(layer, site)

    def _pack(self, layer: int, sites: Sequence[str]) -> tuple[Tensor, Tensor] | None:
        """Stack A of the adapted sites, ``(adapters, in, ranks)``, and B, ``(adapters, ranks, sites · out)``.

        B is block-diagonal, with a block for each site, so that one product serves all sites. Missing ranks are zero.
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
        """Multiply each row by the matrix of its adapter: ``(rows, in), (adapters, in, out)`` → ``(rows, out)``."""
        if not self.runs:
            return F.grouped_mm(rows, matrices, offs=self.ends)
        products = rows.new_empty(len(rows), matrices.shape[2])
        for adapter, first, last in self.runs:
            torch.mm(rows[first:last], matrices[adapter], out=products[first:last])
        return products


def _side_by_side(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
