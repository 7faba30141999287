"""Plans attention over packed tokens for the variable-length kernels of GPUs: nothing is padded.

These kernels have two modes: every query sees every key, or attention is causal. That is enough. Source tokens see all
of their source. Target tokens see the source and the target up to themselves, which is the causal mode with the source
as past. So a plan has at most one stretch for each mode. On other devices a loop over sequences computes the same, so
that plans can be tested everywhere.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.model.padded_plan import Span


@dataclass(frozen=True)
class Stretch:
    """Sequences that are attended over in the same mode."""

    queries: Tensor
    """``(q,)`` query tokens, sequence after sequence."""
    keys: Tensor
    """``(k,)`` key tokens, sequence after sequence."""
    query_ends: Tensor
    """``(sequences + 1,)`` int32: 0, then where the queries of each sequence end."""
    key_ends: Tensor
    """``(sequences + 1,)`` int32: the same for keys."""
    most_queries: int
    """Largest number of queries in a sequence."""
    most_keys: int
    """Largest number of keys in a sequence."""
    is_causal: bool
    """Whether the last query sees all keys, the one before it all but the last, and so on; else all see all keys."""


@dataclass(frozen=True)
class VariableLengthPlan:
    """Attention without padding, as at most two stretches. See ``AttentionPlan``."""

    stretches: tuple[Stretch, ...]
    place: Tensor
    """``(queries,)`` place of each query in the concatenated stretches."""

    def reordered(self, order: Tensor, place: Tensor) -> VariableLengthPlan:
        """See ``AttentionPlan``."""
        moved = tuple(dataclasses.replace(s, queries=place[s.queries], keys=place[s.keys]) for s in self.stretches)
        return VariableLengthPlan(moved, self.place[order])

    def attend(self, joint: Tensor, heads: int) -> Tensor:
        """See ``AttentionPlan``."""
        width = joint.shape[1] // 3
        return self.attend_to(joint[:, :width], joint[:, width:], heads)

    def attend_to(self, query: Tensor, others: Tensor, heads: int) -> Tensor:
        """See ``AttentionPlan``."""
        mixed: list[Tensor] = []
        for stretch in self.stretches:
            rows = query.index_select(0, stretch.queries).unflatten(1, (heads, -1))
            keys, values = others.index_select(0, stretch.keys).unflatten(1, (2, heads, -1)).unbind(1)
            mixed.append(variable_length_attention(rows, keys, values, stretch).flatten(1))
        return torch.cat(mixed).index_select(0, self.place)


def variable_length_attention(query: Tensor, key: Tensor, value: Tensor, stretch: Stretch) -> Tensor:
    """Scaled dot-product attention inside each sequence of a stretch.

    ``query`` ``(q, heads, width)``, ``key`` and ``value`` ``(k, heads, width)`` → like ``query``.
    """
    if query.device.type == "cuda":
        from torch.nn.attention.varlen import varlen_attn

        ends = (stretch.query_ends, stretch.key_ends, stretch.most_queries, stretch.most_keys)
        attended: Any = varlen_attn(query, key, value, *ends, **_causality(varlen_attn, stretch.is_causal))
        return attended
    outputs: list[Tensor] = []
    query_ends, key_ends = stretch.query_ends.tolist(), stretch.key_ends.tolist()
    for q, next_q, k, next_k in zip(query_ends, query_ends[1:], key_ends, key_ends[1:], strict=False):
        past = (next_k - k) - (next_q - q)
        allowed = torch.ones(next_q - q, next_k - k, dtype=torch.bool).tril(past) if stretch.is_causal else None
        own = (rows.transpose(0, 1) for rows in (query[q:next_q], key[k:next_k], value[k:next_k]))
        outputs.append(F.scaled_dot_product_attention(*own, attn_mask=allowed).transpose(0, 1))
    return torch.cat(outputs)


def _causality(kernel: Any, is_causal: bool) -> dict[str, Any]:
    """The kernel's argument for causality: ``is_causal`` in torch 2.10 and 2.11, ``window_size`` in later versions."""
    if "is_causal" in inspect.signature(kernel).parameters:
        return {"is_causal": is_causal}
    return {"window_size": (-1, 0) if is_causal else (-1, -1)}


def plan_variable_length(queries: Sequence[Span], keys: Sequence[Span]) -> VariableLengthPlan:
    """Plan attention of ``queries[s]`` over ``keys[s]`` for every sequence s; see ``padded_plan.plan_padded``.

    In every span the source, of order 0, must lie before the target, of orders 1, 2, …

    1. The first stretch has the source tokens as queries, which see all of the source, and options, which see all of
       the source and of themselves.
    2. The second has the target tokens as queries, which see all keys up to themselves (causal).
    3. ``place`` puts the outputs of both stretches back into the order of the query tokens.
    """
    stretches: list[Stretch] = []
    asked: list[np.ndarray] = []
    for is_causal in (False, True):
        pairs: list[tuple[np.ndarray, np.ndarray]] = []
        for query, key in zip(queries, keys, strict=True):
            if is_causal:
                pairs.append((query.tokens[query.orders > 0], key.tokens))
                continue
            for group in np.unique(query.own_groups):
                asking = query.tokens[(query.orders == 0) & (query.own_groups == group)]
                pairs.append((asking, key.tokens[(key.orders == 0) & np.isin(key.own_groups, (0, group))]))
        pairs = [(asking, seen) for asking, seen in pairs if len(asking)]
        if pairs:
            own, seen = (list(column) for column in zip(*pairs, strict=True))
            asked += own
            stretches.append(
                Stretch(
                    torch.from_numpy(np.concatenate(own)),
                    torch.from_numpy(np.concatenate(seen)),
                    _ends(own),
                    _ends(seen),
                    max(map(len, own)),
                    max(map(len, seen)),
                    is_causal,
                )
            )
    return VariableLengthPlan(tuple(stretches), torch.from_numpy(np.argsort(np.concatenate(asked))))


def _ends(sequences: Sequence[np.ndarray]) -> Tensor:
    return torch.tensor([0, *np.cumsum([len(s) for s in sequences])], dtype=torch.int32)
