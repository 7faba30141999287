"""Packed tokens: a batch of sequences as one flat run of real tokens, and the plans to attend over it.

Linear layers, norms and adapters work on the flat run, so padding costs nothing there. Attention follows a plan that is
made once a batch on the host: here one that groups sequences of similar length into padded rectangles, in
``variable_length.py`` one for the kernels that GPUs have.

Who sees whom follows from one rule: token i sees token j iff both belong to one sequence and ``order[j] <= order[i]``.
Source tokens have order 0 (they see each other), target tokens 1, 2, … (each sees the source and its own past).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# A group holds rows whose key length is at least this share of its longest one: less wastes work on padding, more makes
# many small attention calls.
GROUP_LENGTH_RATIO = 0.9
CHUNK_SCORES = 2**20
"""Attention scores that are computed at a time on a CPU, about what fits in a core's cache."""


class _TakeRows(torch.autograd.Function):
    """``rows[source]``, whose gradient is ``gradient[back]``, zero where ``back`` is negative.

    Rows that are taken several times must have no gradient but at one place. The general gradient of indexing
    accumulates, which on a CPU is many times slower.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Tensor, back: Tensor, is_complete: bool) -> Tensor:
        ctx.save_for_backward(back)
        ctx.is_complete = is_complete
        return rows.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (back,) = ctx.saved_tensors
        if ctx.is_complete:
            return gradients[0].index_select(0, back), None, None, None
        taken = gradients[0].index_select(0, back.clamp_min(0))
        return taken.masked_fill(back[:, None] < 0, 0), None, None, None


def take_rows(rows: Tensor, source: Tensor, back: Tensor, is_complete: bool) -> Tensor:
    """``rows[source]`` for moves that gather and scatter without adding anything up.

    Args:
        rows: ``(n, width)``.
        source: ``(m,)`` row numbers. One may be there several times if only one of its places has a gradient.
        back: ``(n,)`` the place whose gradient is that of each row; negative for a row that is not taken.
        is_complete: whether every row is taken, so that ``back`` is never negative.
    """
    taken: Tensor = _TakeRows.apply(rows, source, back, is_complete)  # pyright: ignore[reportAssignmentType]
    return taken


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention: ``(rows, heads, length, width)`` each, boolean ``mask`` → like ``query``.

    In bf16 on a CPU plain products are faster than the library's kernel, forwards and backwards
    (``benchmarks/attention.py``); without gradient they go over few rows at a time, whose scores stay in the cache.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        if not torch.is_grad_enabled():
            return _attention_in_chunks(query, key, value, mask)
        scores = torch.matmul(query, key.transpose(-1, -2)) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return torch.matmul(torch.softmax(scores, dim=-1), value)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _attention_in_chunks(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    rows, heads, length, width = query.shape
    keys = key.shape[2]
    chunk = min(rows, max(1, CHUNK_SCORES // (heads * length * keys)))
    # Written again and again: fresh memory of this size costs more than the products.
    scores, shares = (query.new_empty(chunk * heads, length, keys) for _ in range(2))
    out = query.new_empty(rows, length, heads, width).transpose(1, 2)
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        products = (last - first) * heads
        own, shared = scores[:products], shares[:products]
        scaled = (query[first:last] * width**-0.5).reshape(products, length, width)
        torch.bmm(scaled, key[first:last].reshape(products, keys, width).transpose(1, 2), out=own)
        if mask is not None:
            own.view(last - first, heads, length, keys).masked_fill_(~mask[first:last], float("-inf"))
        torch.softmax(own, dim=-1, out=shared)
        mixed = torch.bmm(shared, value[first:last].reshape(products, keys, width))
        out[first:last] = mixed.view(last - first, heads, length, width)
    return out


@dataclass(frozen=True)
class Layout:
    """Where each packed token sits in the padded rectangles."""

    tokens: Tensor
    """``(slots,)`` token of each slot. Padding repeats a token: nobody attends to it, and what it gets is dropped."""
    owners: Tensor
    """``(slots,)`` the same, but negative for padding."""
    slots: Tensor
    """``(tokens,)`` slot of each token; negative for one without a slot."""
    has_padding: bool
    is_complete: bool
    """Whether every token has a slot."""

    def pad(self, packed: Tensor) -> Tensor:
        """``(tokens, width)`` → ``(slots, width)``."""
        return take_rows(packed, self.tokens, self.slots, self.is_complete)

    def unpad(self, padded: Tensor) -> Tensor:
        """``(slots, width)`` → ``(tokens, width)``. Every token needs a slot."""
        assert self.is_complete
        return take_rows(padded, self.slots, self.owners, not self.has_padding)

    def reordered(self, order: Tensor, place: Tensor) -> Layout:
        """The layout of the same tokens when token t lies at ``place[t]`` and ``order`` is its inverse."""
        tokens = place[self.tokens]
        owners = torch.where(self.owners < 0, self.owners, tokens)
        return dataclasses.replace(self, tokens=tokens, owners=owners, slots=self.slots[order])


@dataclass(frozen=True)
class AttentionGroup:
    """One rectangle: ``rows`` sequences, queries and keys padded to a common length each."""

    rows: int
    queries: int
    keys: int
    mask: Tensor | None
    """``(rows, 1, queries or 1, keys)``, true where attention is allowed; None where everything is."""


class AttentionPlan(Protocol):
    """All that attention over one packed batch needs; the same for every layer."""

    def reordered(self, order: Tensor, place: Tensor) -> AttentionPlan:
        """The plan of the same sequences when token t lies at ``place[t]`` and ``order`` is its inverse."""
        ...

    def attend(self, joint: Tensor, heads: int) -> Tensor:
        """Tokens among themselves: queries, keys and values ``(tokens, 3 · width)`` → ``(tokens, width)``."""
        ...

    def attend_to(self, query: Tensor, others: Tensor, heads: int) -> Tensor:
        """Queries ``(q, width)`` to keys and values ``(k, 2 · width)`` of other tokens → ``(q, width)``."""
        ...


@dataclass(frozen=True)
class PaddedPlan:
    """Sequences of similar length in padded rectangles. See ``AttentionPlan``."""

    query_layout: Layout
    key_layout: Layout
    groups: tuple[AttentionGroup, ...]

    def reordered(self, order: Tensor, place: Tensor) -> PaddedPlan:
        """See ``AttentionPlan``."""
        layout = self.query_layout.reordered(order, place)
        return dataclasses.replace(self, query_layout=layout, key_layout=layout)

    def attend(self, joint: Tensor, heads: int) -> Tensor:
        """See ``AttentionPlan``."""
        width = joint.shape[1] // 3
        padded = self.query_layout.pad(joint)
        return self._attend(padded[:, :width], padded[:, width:], heads)

    def attend_to(self, query: Tensor, others: Tensor, heads: int) -> Tensor:
        """See ``AttentionPlan``."""
        return self._attend(self.query_layout.pad(query), self.key_layout.pad(others), heads)

    def _attend(self, queries: Tensor, others: Tensor, heads: int) -> Tensor:
        width = queries.shape[1]
        outputs: list[Tensor] = []
        first_query = first_key = 0
        for group in self.groups:
            last_query = first_query + group.rows * group.queries
            last_key = first_key + group.rows * group.keys
            rows = queries[first_query:last_query].unflatten(0, (group.rows, -1)).unflatten(2, (heads, -1))
            pairs = others[first_key:last_key].unflatten(0, (group.rows, -1)).unflatten(2, (2, heads, -1))
            keys, values = pairs.permute(2, 0, 3, 1, 4)
            mixed = attention(rows.transpose(1, 2), keys, values, group.mask)
            outputs.append(mixed.transpose(1, 2).reshape(-1, width))
            first_query, first_key = last_query, last_key
        return self.query_layout.unpad(torch.cat(outputs))


@dataclass(frozen=True)
class Span:
    """Tokens of one sequence: their places in the packed run and their orders."""

    tokens: np.ndarray
    orders: np.ndarray

    @staticmethod
    def join(spans: Sequence[Span]) -> Span:
        """One sequence out of several spans, in order."""
        return Span(np.concatenate([s.tokens for s in spans]), np.concatenate([s.orders for s in spans]))


def plan_padded(queries: Sequence[Span], keys: Sequence[Span], key_count: int | None = None) -> PaddedPlan:
    """Plan attention of ``queries[s]`` over ``keys[s]`` for every sequence s, grouped by similar key length.

    Args:
        queries: tokens that ask; every token of the run is in one of them.
        keys: tokens that they may see; the very same list if the tokens are among themselves.
        key_count: how many tokens the keys' run has, where some of them are in no sequence.
    """
    by_length = sorted(range(len(keys)), key=lambda s: -len(keys[s].tokens))
    groups: list[list[int]] = []
    for sequence in by_length:
        longest = len(keys[groups[-1][0]].tokens) if groups else 0
        if not groups or len(keys[sequence].tokens) < GROUP_LENGTH_RATIO * longest:
            groups.append([])
        groups[-1].append(sequence)
    rectangles = [_rectangle([queries[s] for s in group], [keys[s] for s in group]) for group in groups]
    order = [s for group in groups for s in group]
    query_layout = _layout([queries[s] for s in order], [r.queries for r in rectangles for _ in range(r.rows)])
    if queries is keys:
        return PaddedPlan(query_layout, query_layout, tuple(rectangles))
    key_layout = _layout([keys[s] for s in order], [r.keys for r in rectangles for _ in range(r.rows)], key_count)
    return PaddedPlan(query_layout, key_layout, tuple(rectangles))


def _rectangle(queries: Sequence[Span], keys: Sequence[Span]) -> AttentionGroup:
    query_length = max(len(s.tokens) for s in queries)
    key_length = max(len(s.tokens) for s in keys)
    if not any(span.orders.any() for span in keys):
        # Everybody sees everybody: only padding is hidden.
        own = np.array([len(s.tokens) for s in keys])
        allowed = (np.arange(key_length) < own[:, None])[:, None, None, :]
    else:
        # Padded queries see every key (a row without any key would give NaN on some kernels), padded keys are hidden.
        last = 1 + max(int(s.orders.max(initial=0)) for s in [*queries, *keys])
        query_orders = np.full((len(queries), query_length), last)
        key_orders = np.full((len(keys), key_length), last + 1)
        for row, (query, key) in enumerate(zip(queries, keys, strict=True)):
            query_orders[row, : len(query.orders)] = query.orders
            key_orders[row, : len(key.orders)] = key.orders
        allowed = key_orders[:, None, None, :] <= query_orders[:, None, :, None]
    mask = None if allowed.all() else torch.from_numpy(allowed)
    return AttentionGroup(rows=len(queries), queries=query_length, keys=key_length, mask=mask)


def _layout(spans: Sequence[Span], lengths: Sequence[int], count: int | None = None) -> Layout:
    """Lay ``spans`` into rows of ``lengths`` slots; ``count`` tokens there are, those of the spans if not given."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.concatenate([span.tokens for span in spans])
    places = np.concatenate([start + np.arange(len(s.tokens)) for start, s in zip(starts[:-1], spans, strict=True)])
    owners = np.full(starts[-1], -1)
    owners[places] = tokens
    slots = np.full(len(tokens) if count is None else count, -1)
    slots[tokens] = places
    return Layout(
        tokens=torch.from_numpy(np.where(owners < 0, tokens[0], owners)),
        owners=torch.from_numpy(owners),
        slots=torch.from_numpy(slots),
        has_padding=len(places) < len(owners),
        is_complete=len(tokens) == len(slots),
    )


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor inside nested frozen dataclasses, tuples, lists and dictionaries to ``device``."""
    if isinstance(value, Tensor):
        # Only pinned memory is copied while the host goes on.
        return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)
    if isinstance(value, tuple | list):
        return type(value)(to_device(item, device) for item in value)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        moved = {f.name: to_device(getattr(value, f.name), device) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **moved)
    return value
