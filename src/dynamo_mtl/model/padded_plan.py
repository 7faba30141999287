"""Plans attention over packed tokens by grouping sequences of similar length into padded rectangles.

A batch is one flat run of tokens. Linear layers, norms and adapters work on that run, so they spend nothing on padding
to the longest sequence. Only attention needs a plan, which is made on the host once per batch.
``variable_length.py`` has the other kind of plan, for kernels that GPUs have.

One rule says what a token sees: token i sees token j iff both belong to one sequence, ``order[j] <= order[i]``, and j
is of group 0 or of the group of i. Source tokens have order 0, so they see each other. Target tokens have orders 1, 2,
…, so each sees the source, the target tokens before it, and itself. Options have order 0, and each is a group of its
own, so it sees the source and itself, and the source sees none of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dynamo_mtl.model.attention import attention, take_rows


def round_up(count: int, finest: int = 16, steps: int = 16) -> int:
    """Round up to one of a few sizes, so that the same shapes of products occur again.

    On a CPU, oneDNN compiles a product for every new shape and caches the most recent ones. Compiling can take longer
    than the product itself (``benchmarks/race_shapes.py``).

    Args:
        count: the number to round.
        finest: every result is a multiple of it.
        steps: number of sizes between powers of two. From ``finest * steps`` on, at most ``1 / steps`` is added.
    """
    step = max(finest, (1 << (count.bit_length() - 1)) // steps) if count else 1
    return -(-count // step) * step


@dataclass(frozen=True)
class Layout:
    """Where each packed token sits in the padded rectangles.

    A slot is the place of one token in a rectangle: a sequence is a row of slots. Rectangles lie one after the other,
    each as ``(parts, rows, heads, length, width)``, so that products need no copy of their operands. Parts are the
    queries, keys or values that lie side by side in a packed token; width is that of a head.
    """

    tokens: Tensor
    """``(slots,)`` token of each slot. A padding slot repeats a token: no token sees it, and its output is dropped."""
    owners: Tensor
    """``(slots,)`` the same, but negative for padding."""
    slots: Tensor
    """``(tokens,)`` slot of each token; negative for a token of no sequence, whose output is arbitrary."""
    geometry: Tensor
    """``(5, slots)`` for each slot: the number of slots before its rectangle, in the rectangle before its row, and in
    the row before it; then the number of slots in its row and in its rectangle."""
    shapes: tuple[tuple[int, int], ...]
    """Number and length of the rows of each rectangle."""
    is_plain: bool
    """Whether there is one rectangle without padding and with the tokens in order, so that nothing has to be moved."""
    moves: dict[tuple[str, int, int], Tensor] = field(default_factory=dict, compare=False)
    """Index tensors by kind, parts and heads; made when first needed and used by every layer."""
    places: dict[tuple[int, int], Tensor] = field(default_factory=dict, compare=False)
    """By parts and heads: ``(slots, parts · heads)`` place of each vector in the rectangles; any order of tokens."""

    def pad(self, packed: Tensor, parts: int, heads: int) -> list[Tensor]:
        """``(tokens, parts · heads · width)`` → ``(parts, rows, heads, length, width)`` of every rectangle."""
        if self.is_plain:
            return [packed.view(*self.shapes[0], parts, heads, -1).permute(2, 0, 3, 1, 4)]
        vectors = packed.reshape(len(packed) * parts * heads, -1)
        back = partial(self._move, "of tokens", parts, heads)
        padded = take_rows(vectors, self._move("to pad", parts, heads), back)
        pieces = padded.split([parts * heads * rows * length for rows, length in self.shapes])
        shapes = [(parts, rows, heads, length, -1) for rows, length in self.shapes]
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def unpad(self, rectangles: Sequence[Tensor], heads: int) -> Tensor:
        """``(rows, heads, length, width)`` of every rectangle → ``(tokens, heads · width)``."""
        if self.is_plain:
            return rectangles[0].transpose(1, 2).reshape(len(self.slots), -1)
        vectors = torch.cat([rectangle.reshape(-1, rectangle.shape[-1]) for rectangle in rectangles])
        back = partial(self._move, "of slots", 1, heads)
        return take_rows(vectors, self._move("to unpad", 1, heads), back).view(len(self.slots), -1)

    def reordered(self, order: Tensor, place: Tensor) -> Layout:
        """Return the layout after token t has moved to ``place[t]``; ``order`` is the inverse of ``place``.

        The tokens of a sequence must stay together and in order.
        """
        if self.is_plain:  # only whole rows have moved, and every row is treated alike
            return self
        tokens = place[self.tokens]
        owners = torch.where(self.owners < 0, self.owners, tokens)
        return dataclasses.replace(self, tokens=tokens, owners=owners, slots=self.slots[order], moves={})

    def _move(self, kind: str, parts: int, heads: int) -> Tensor:
        key = (kind, parts, heads)
        if key not in self.moves:
            self.moves[key] = self._make_move(*key)
        return self.moves[key]

    def _make_move(self, kind: str, parts: int, heads: int) -> Tensor:
        """Make an index tensor: for each destination, the number of its source vector.

        - ``to pad``: place in the rectangles → packed vector; any vector for padding
        - ``of slots``: the same, but negative for padding; the gradient of ``to unpad``
        - ``to unpad``: packed vector → place in the rectangles; any place for a token without a slot
        - ``of tokens``: the same, but negative for a token without a slot; the gradient of ``to pad``
        """
        part = torch.arange(parts, device=self.tokens.device)[:, None]
        head = torch.arange(heads, device=self.tokens.device)
        if (parts, heads) not in self.places:
            # Vectors that lie before one: whole rectangles, then parts, rows, heads, and places in the row.
            rectangle, row, inside, length, size = self.geometry[:, :, None, None]
            places = heads * (parts * rectangle + row + part * size) + inside + head * length
            self.places[parts, heads] = places.flatten(1)
        places = self.places[parts, heads]
        if kind == "to unpad":
            return places[self.slots.clamp_min(0)].flatten()
        if kind == "of tokens":
            return places[self.slots].masked_fill_(self.slots[:, None] < 0, -1).flatten()
        tokens = self.tokens if kind == "to pad" else self.owners
        vectors = tokens[:, None] * (parts * heads) + (part * heads + head).flatten()
        lying = torch.empty_like(vectors).flatten()
        return lying.scatter_(0, places.flatten(), vectors.masked_fill_(tokens[:, None] < 0, -1).flatten())


@dataclass(frozen=True)
class PaddedPlan:
    """Sequences of similar length in padded rectangles. See ``AttentionPlan``."""

    query_layout: Layout
    key_layout: Layout
    masks: tuple[Tensor | None, ...]
    """``(rows, 1, queries or 1, keys)`` of each rectangle, true where attention is allowed; None if all is."""

    def reordered(self, order: Tensor, place: Tensor) -> PaddedPlan:
        """See ``AttentionPlan``."""
        layout = self.query_layout.reordered(order, place)
        is_shared = self.key_layout is self.query_layout
        keys = layout if is_shared else self.key_layout.reordered(order, place)
        return dataclasses.replace(self, query_layout=layout, key_layout=keys)

    def attend(self, joint: Tensor, heads: int) -> Tensor:
        """See ``AttentionPlan``."""
        if self.key_layout is not self.query_layout:
            width = joint.shape[1] // 3
            return self.attend_to(joint[:, :width], joint[:, width:], heads)
        padded = self.query_layout.pad(joint, 3, heads)
        return self._attend([(piece[0], piece[1], piece[2]) for piece in padded], heads)

    def attend_to(self, query: Tensor, others: Tensor, heads: int) -> Tensor:
        """See ``AttentionPlan``."""
        queries = self.query_layout.pad(query, 1, heads)
        pairs = self.key_layout.pad(others, 2, heads)
        return self._attend([(own[0], pair[0], pair[1]) for own, pair in zip(queries, pairs, strict=True)], heads)

    def _attend(self, rectangles: Sequence[tuple[Tensor, Tensor, Tensor]], heads: int) -> Tensor:
        mixed = [attention(*own, mask) for own, mask in zip(rectangles, self.masks, strict=True)]
        return self.query_layout.unpad(mixed, heads)


@dataclass(frozen=True)
class Span:
    """Tokens of one sequence: their places in the packed run and their orders."""

    tokens: np.ndarray
    orders: np.ndarray
    groups: np.ndarray | None = None
    """Group of each token; None if all are of group 0."""

    @property
    def own_groups(self) -> np.ndarray:
        """Group of each token."""
        return np.zeros_like(self.orders) if self.groups is None else self.groups

    @staticmethod
    def join(spans: Sequence[Span]) -> Span:
        """One sequence out of several spans, in order."""
        tokens, orders = np.concatenate([s.tokens for s in spans]), np.concatenate([s.orders for s in spans])
        is_grouped = any(s.groups is not None for s in spans)
        return Span(tokens, orders, np.concatenate([s.own_groups for s in spans]) if is_grouped else None)


def plan_padded(queries: Sequence[Span], keys: Sequence[Span], query_count: int, key_count: int) -> PaddedPlan:
    """Plan attention of ``queries[s]`` over ``keys[s]`` for every sequence s, grouped by similar key length.

    Args:
        queries: query tokens of each sequence.
        keys: key tokens of each sequence; the same list object for self-attention.
        query_count: number of tokens in the run of the queries; some may be in no sequence.
        key_count: the same for the keys.
    """
    # Sequences of the same rounded key length share a rectangle, the longest first.
    groups: dict[int, list[int]] = {}
    for sequence in sorted(range(len(keys)), key=lambda s: -len(keys[s].tokens)):
        groups.setdefault(round_up(len(keys[sequence].tokens), 8, 8), []).append(sequence)
    asking = [[queries[s] for s in group] for group in groups.values()]
    seen = [[keys[s] for s in group] for group in groups.values()]
    query_lengths, key_lengths = _lengths(asking), _lengths(seen)
    masks = tuple(map(_mask, asking, seen, query_lengths, key_lengths))
    query_layout = _layout(asking, query_lengths, query_count)
    key_layout = query_layout if queries is keys else _layout(seen, key_lengths, key_count)
    return PaddedPlan(query_layout, key_layout, masks)


def _lengths(rectangles: Sequence[Sequence[Span]]) -> list[int]:
    """Row length of each rectangle, rounded up so that shapes occur again, unless all sequences are equally long."""
    longest = [max(len(span.tokens) for span in spans) for spans in rectangles]
    if len({len(span.tokens) for spans in rectangles for span in spans}) == 1:
        return longest
    return [round_up(length, 8, 8) for length in longest]


def _mask(queries: Sequence[Span], keys: Sequence[Span], query_length: int, key_length: int) -> Tensor | None:
    """Mask of one rectangle; None if every query sees every key."""
    is_grouped = any(span.groups is not None for span in keys)
    if not is_grouped and not any(span.orders.any() for span in keys):
        # All tokens of a sequence see each other; only padding is hidden.
        lengths = np.array([len(span.tokens) for span in keys])
        allowed = (np.arange(key_length) < lengths[:, None])[:, None, None, :]
    else:
        # Padding queries see every real key, since some kernels give NaN for a query that sees none. Padding keys have
        # the highest order, so no query sees them.
        last = 1 + max(int(s.orders.max(initial=0)) for s in [*queries, *keys])
        query_orders = np.full((len(queries), query_length), last)
        key_orders = np.full((len(keys), key_length), last + 1)
        for row, (query, key) in enumerate(zip(queries, keys, strict=True)):
            query_orders[row, : len(query.orders)] = query.orders
            key_orders[row, : len(key.orders)] = key.orders
        allowed = key_orders[:, None, None, :] <= query_orders[:, None, :, None]
        if is_grouped:
            query_groups, key_groups = (np.zeros(orders.shape, dtype=np.int64) for orders in (query_orders, key_orders))
            for row, (query, key) in enumerate(zip(queries, keys, strict=True)):
                query_groups[row, : len(query.orders)] = query.own_groups
                key_groups[row, : len(key.orders)] = key.own_groups
            own, seen = query_groups[:, None, :, None], key_groups[:, None, None, :]
            allowed &= (seen == 0) | (seen == own)
    return None if allowed.all() else torch.from_numpy(allowed)


def _layout(rectangles: Sequence[Sequence[Span]], widths: Sequence[int], count: int) -> Layout:
    """Give each sequence a row in its rectangle.

    Args:
        rectangles: the sequences of each rectangle.
        widths: row length of each rectangle.
        count: number of tokens in the run.
    """
    # 1. Rows lie one after the other: row r has the slots starts[r] to starts[r + 1].
    shapes = tuple((len(spans), width) for spans, width in zip(rectangles, widths, strict=True))
    lengths = [length for rows, length in shapes for _ in range(rows)]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    # 2. Which token is in each slot, and which slot each token has.
    spans = [span for own in rectangles for span in own]
    tokens = np.concatenate([span.tokens for span in spans])
    places = np.concatenate([start + np.arange(len(s.tokens)) for start, s in zip(starts[:-1], spans, strict=True)])
    owners = np.full(starts[-1], -1)
    owners[places] = tokens
    slots = np.full(count, -1)
    slots[tokens] = places
    # 3. The geometry of each slot.
    row_lengths = np.repeat(lengths, lengths)
    starts_of_rows = np.repeat(starts[:-1], lengths)
    inside = np.arange(starts[-1]) - starts_of_rows
    areas = [rows * length for rows, length in shapes]
    before, sizes = np.repeat(np.cumsum(areas) - areas, areas), np.repeat(areas, areas)
    return Layout(
        tokens=torch.from_numpy(np.where(owners < 0, tokens[0], owners)),
        owners=torch.from_numpy(owners),
        slots=torch.from_numpy(slots),
        geometry=torch.from_numpy(np.stack([before, starts_of_rows - before, inside, row_lengths, sizes])),
        shapes=shapes,
        is_plain=len(shapes) == 1 and np.array_equal(owners, np.arange(len(slots))),
    )
