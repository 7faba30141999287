"""Scaled dot-product attention over padded rectangles, and the contract of attention plans for packed tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.model import hardware

CHUNK_SCORES = 2**20
"""Number of attention scores that are computed at a time on a CPU; about as many fit in a core's cache."""


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
    """``rows[source]`` with a fast gradient, for moves in which at most one place of each row has a gradient.

    The usual gradient of indexing adds up over places, which is many times slower on a CPU.

    Args:
        rows: ``(n, width)``.
        source: ``(m,)`` row numbers. A row may occur several times if only one of its places has a gradient.
        back: makes ``(n,)``: for each row the place whose gradient it gets, negative for none.
    """
    if not (torch.is_grad_enabled() and rows.requires_grad):
        return rows.index_select(0, source)
    taken: Tensor = _TakeRows.apply(rows, source, back())  # pyright: ignore[reportAssignmentType]
    return taken


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention: ``(rows, heads, length, width)`` each, boolean ``mask`` → like ``query``.

    In bf16 on a CPU, plain products are faster than PyTorch's kernel, forwards and backwards
    (``benchmarks/attention.py``). The exception is a CPU with AMX without gradient. Without gradient, plain products
    take a few rows at a time, so that the scores stay in the cache.
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
    """Like ``attention``, by plain products without gradient, a few rows at a time."""
    rows, heads, length, width = query.shape
    keys = key.shape[2]
    chunk = min(rows, max(1, CHUNK_SCORES // (heads * length * keys)))
    # These are reused for every chunk, because new memory of this size costs more than the products.
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
    """Says which tokens of one packed batch attend to which; the same for every layer."""

    def reordered(self, order: Tensor, place: Tensor) -> AttentionPlan:
        """Return the plan after token t has moved to ``place[t]``; ``order`` is the inverse of ``place``."""
        ...

    def attend(self, joint: Tensor, heads: int) -> Tensor:
        """Self-attention over queries, keys and values side by side: ``(tokens, 3 · width)`` → ``(tokens, width)``."""
        ...

    def attend_to(self, query: Tensor, others: Tensor, heads: int) -> Tensor:
        """Attention of queries ``(q, width)`` over other keys and values ``(k, 2 · width)`` → ``(q, width)``."""
        ...
