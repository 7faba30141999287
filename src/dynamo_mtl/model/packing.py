"""Packed tokens: a batch of sequences as one flat run of real tokens, and the plans to attend over it.

Linear layers, norms and adapters work on the flat run, so padding costs nothing there. Attention needs rectangles:
an ``AttentionPlan``, made once a batch on the host, groups sequences of similar length into padded rectangles.

Who sees whom follows from one rule: token i sees token j iff both belong to one sequence and ``order[j] <= order[i]``.
Source tokens have order 0 (they see each other), target tokens 1, 2, … (each sees the source and its own past).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# A group holds rows whose key length is at least this share of its longest one: less wastes work on padding, more makes
# many small attention calls.
GROUP_LENGTH_RATIO = 0.7


class _MoveRows(torch.autograd.Function):
    """``out[to[m]] = rows[source[m]]``, zero elsewhere; its gradient is the same move backwards.

    Both index lists name every row at most once, so no accumulation is needed: on a CPU that is many times faster
    than the general gradient of indexing.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Tensor, to: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(source, to)
        ctx.rows = rows.shape[0]
        out = rows.new_zeros((size, *rows.shape[1:]))
        return out.index_copy_(0, to, rows.index_select(0, source))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        source, to = ctx.saved_tensors
        grad = gradients[0]
        out = grad.new_zeros((ctx.rows, *grad.shape[1:]))
        return out.index_copy_(0, source, grad.index_select(0, to)), None, None, None


def move_rows(rows: Tensor, source: Tensor, to: Tensor, size: int) -> Tensor:
    """Return ``out`` of ``size`` rows with ``out[to[m]] = rows[source[m]]`` and zeros elsewhere.

    Args:
        rows: ``(n, …)``.
        source: ``(m,)`` distinct row numbers of ``rows``.
        to: ``(m,)`` distinct row numbers of the result.
        size: number of rows of the result.
    """
    moved: Tensor = _MoveRows.apply(rows, source, to, size)  # pyright: ignore[reportAssignmentType]
    return moved


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention: ``(rows, heads, length, width)`` each, boolean ``mask`` → like ``query``.

    In bf16 on a CPU the library's backward is slower than these three plain lines (``benchmarks/attention.py``).
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and torch.is_grad_enabled():
        scores = torch.matmul(query, key.transpose(-1, -2)) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return torch.matmul(torch.softmax(scores, dim=-1), value)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


@dataclass(frozen=True)
class Layout:
    """Where each packed token sits in the padded rectangles: ``tokens[m]`` lies in slot ``slots[m]`` of ``size``."""

    tokens: Tensor
    slots: Tensor
    size: int

    def pad(self, packed: Tensor) -> Tensor:
        """``(tokens, width)`` → ``(size, width)``; empty slots are zero."""
        return move_rows(packed, self.tokens, self.slots, self.size)

    def unpad(self, padded: Tensor, count: int) -> Tensor:
        """``(size, width)`` → ``(count, width)``."""
        return move_rows(padded, self.slots, self.tokens, count)

    def reordered(self, place: Tensor) -> Layout:
        """The layout of the same tokens when token t lies at ``place[t]``."""
        return dataclasses.replace(self, tokens=place[self.tokens])


@dataclass(frozen=True)
class AttentionGroup:
    """One rectangle: ``rows`` sequences, queries and keys padded to a common length each."""

    rows: int
    queries: int
    keys: int
    mask: Tensor | None
    """``(rows, 1, queries, keys)``, true where attention is allowed; None where everything is."""


@dataclass(frozen=True)
class AttentionPlan:
    """All that attention over one packed batch needs; the same for every layer."""

    query_layout: Layout
    key_layout: Layout
    groups: tuple[AttentionGroup, ...]

    def reordered(self, place: Tensor) -> AttentionPlan:
        """The plan of the same sequences when token t lies at ``place[t]``."""
        query, key = self.query_layout.reordered(place), self.key_layout.reordered(place)
        return dataclasses.replace(self, query_layout=query, key_layout=key)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """Multi-head attention over packed tokens: ``(q, width), (k, width), (k, width)`` → ``(q, width)``."""
        width = query.shape[-1]
        padded_query = self.query_layout.pad(query)
        padded = self.key_layout.pad(torch.cat([key, value], dim=-1))
        outputs: list[Tensor] = []
        first_query = first_key = 0
        for group in self.groups:
            query_slots, key_slots = group.rows * group.queries, group.rows * group.keys
            rows = padded_query[first_query : first_query + query_slots].view(group.rows, group.queries, heads, -1)
            keys = padded[first_key : first_key + key_slots].view(group.rows, group.keys, 2, heads, -1)
            mixed = attention(
                rows.transpose(1, 2), keys[:, :, 0].transpose(1, 2), keys[:, :, 1].transpose(1, 2), group.mask
            )
            outputs.append(mixed.transpose(1, 2).reshape(query_slots, width))
            first_query, first_key = first_query + query_slots, first_key + key_slots
        return self.query_layout.unpad(torch.cat(outputs), query.shape[0])


@dataclass(frozen=True)
class Span:
    """Tokens of one sequence: their places in the packed run and their orders."""

    tokens: np.ndarray
    orders: np.ndarray

    @staticmethod
    def join(spans: Sequence[Span]) -> Span:
        """One sequence out of several spans, in order."""
        return Span(np.concatenate([s.tokens for s in spans]), np.concatenate([s.orders for s in spans]))


def plan_attention(queries: Sequence[Span], keys: Sequence[Span]) -> AttentionPlan:
    """Plan attention of ``queries[s]`` over ``keys[s]`` for every sequence s, grouped by similar key length."""
    by_length = sorted(range(len(keys)), key=lambda s: -len(keys[s].tokens))
    groups: list[list[int]] = []
    for sequence in by_length:
        longest = len(keys[groups[-1][0]].tokens) if groups else 0
        if not groups or len(keys[sequence].tokens) < GROUP_LENGTH_RATIO * longest:
            groups.append([])
        groups[-1].append(sequence)
    rectangles = [_rectangle([queries[s] for s in group], [keys[s] for s in group]) for group in groups]
    return AttentionPlan(
        query_layout=_layout([queries[s] for group in groups for s in group], [r.queries for r in rectangles], groups),
        key_layout=_layout([keys[s] for group in groups for s in group], [r.keys for r in rectangles], groups),
        groups=tuple(rectangles),
    )


def _rectangle(queries: Sequence[Span], keys: Sequence[Span]) -> AttentionGroup:
    query_length = max(len(s.tokens) for s in queries)
    key_length = max(len(s.tokens) for s in keys)
    # Padded queries see every key (a row without any key would give NaN on some kernels); padded keys are seen by none.
    last = 1 + max(int(s.orders.max(initial=0)) for s in [*queries, *keys])
    query_orders = np.full((len(queries), query_length), last)
    key_orders = np.full((len(keys), key_length), last + 1)
    for row, (query, key) in enumerate(zip(queries, keys, strict=True)):
        query_orders[row, : len(query.orders)] = query.orders
        key_orders[row, : len(key.orders)] = key.orders
    allowed = key_orders[:, None, None, :] <= query_orders[:, None, :, None]
    mask = None if allowed.all() else torch.from_numpy(allowed)
    return AttentionGroup(rows=len(queries), queries=query_length, keys=key_length, mask=mask)


def _layout(spans: Sequence[Span], lengths: Sequence[int], groups: Sequence[Sequence[int]]) -> Layout:
    row_lengths = np.repeat(lengths, [len(group) for group in groups])
    starts = np.concatenate([[0], np.cumsum(row_lengths)])
    slots = [start + np.arange(len(span.tokens)) for start, span in zip(starts[:-1], spans, strict=True)]
    return Layout(
        tokens=torch.from_numpy(np.concatenate([span.tokens for span in spans])),
        slots=torch.from_numpy(np.concatenate(slots)),
        size=int(starts[-1]),
    )


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor inside nested frozen dataclasses, tuples, lists and dictionaries to ``device``."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple | list):
        return type(value)(to_device(item, device) for item in value)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        moved = {f.name: to_device(getattr(value, f.name), device) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **moved)
    return value
