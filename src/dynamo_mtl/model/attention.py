"""Attention over rectangles of queries and keys, and the exchange of rows between a packed batch and them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.model import hardware

CHUNK_SCORES = 2**20
"""Attention scores that are computed at a time on a CPU, about what fits in a core's cache."""


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return rows.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        taken = gradients[0].index_select(0, back.clamp_min(0))
        return taken.masked_fill_(back[:, None] < 0, 0), None, None


def take_rows(rows: Tensor, source: Tensor, back: Callable[[], Tensor]) -> Tensor:
    """``rows[source]`` for moves that gather and scatter without adding anything up.

    The general gradient of indexing accumulates, which on a CPU is many times slower.

    Args:
        rows: ``(n, width)``.
        source: ``(m,)`` row numbers. One may be there several times if only one of its places has a gradient.
        back: ``(n,)`` the place whose gradient is that of each row; negative for a row that has none.
    """
    if not (torch.is_grad_enabled() and rows.requires_grad):
        return rows.index_select(0, source)
    taken: Tensor = _TakeRows.apply(rows, source, back())  # pyright: ignore[reportAssignmentType]
    return taken


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention: ``(rows, heads, length, width)`` each, boolean ``mask`` → like ``query``.

    In bf16 on a CPU plain products are faster than the library's kernel, forwards and backwards
    (``benchmarks/attention.py``), but without gradient on a CPU with AMX. Without gradient they go over few rows at a
    time, whose scores stay in the cache.
    """
    is_half_on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if is_half_on_cpu and torch.is_grad_enabled():
        scores = torch.matmul(query, key.transpose(-1, -2)) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return torch.matmul(torch.softmax(scores, dim=-1), value)
    if is_half_on_cpu and not hardware.has_amx():
        return attention_in_chunks(query, key, value, mask)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def attention_in_chunks(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Like ``attention``, by plain products without gradient, over few rows at a time."""
    rows, heads, length, width = query.shape
    keys = key.shape[2]
    chunk = min(rows, max(1, CHUNK_SCORES // (heads * length * keys)))
    # Written again and again: fresh memory of this size costs more than the products.
    scores, shares = (query.new_empty(chunk * heads, length, keys) for _ in range(2))
    out = query.new_empty(rows * heads, length, width)
    query, key, value = ((query * width**-0.5).flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1))
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        own, products = slice(first * heads, last * heads), (last - first) * heads
        torch.bmm(query[own], key[own].transpose(1, 2), out=scores[:products])
        if mask is not None:
            scores[:products].unflatten(0, (-1, heads)).masked_fill_(~mask[first:last], float("-inf"))
        torch.softmax(scores[:products], dim=-1, out=shares[:products])
        torch.bmm(shares[:products], value[own], out=out[own])
    return out.unflatten(0, (rows, heads))


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
