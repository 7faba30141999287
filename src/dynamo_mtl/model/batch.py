"""Packs sequences into a batch: token ids, the window and example of each token, attention plans. Knows no task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamo_mtl.model.attention import AttentionPlan
from dynamo_mtl.model.padded_plan import Span, plan_padded, round_up
from dynamo_mtl.model.variable_length import plan_variable_length


@dataclass(frozen=True)
class Window:
    """A stretch of a source, framed by special tokens."""

    ids: Sequence[int]
    example: int
    deep: bool = True
    """Whether it also runs through the top layers; if not, only the router reads it."""


@dataclass(frozen=True)
class Target:
    """Tokens after a source window; ``head`` names the vocabulary that their ids belong to.

    They are one sequence to be written, in which each token sees those before it; or, with ``parts``, options to be
    read, of which each sees the source and all of itself.
    """

    window: int
    head: str
    ids: Sequence[int]
    pieces: Sequence[int] | None = None
    """For each id, the backbone token that stands for the copied word (any token if it is not one); None if the task
    copies nothing."""
    parts: Sequence[int] | None = None
    """Number of tokens of each option."""

    def span(self, first: int) -> Span:
        """Its tokens, which lie from ``first`` on, for plans of attention."""
        tokens = np.arange(first, first + len(self.ids))
        if self.parts is None:
            return Span(tokens, np.arange(1, len(tokens) + 1))
        return Span(
            tokens, np.zeros(len(tokens), dtype=np.int64), np.repeat(np.arange(1, 1 + len(self.parts)), self.parts)
        )

    def places(self, source: int) -> np.ndarray:
        """Place of each token after ``source`` source tokens; every option begins right behind them."""
        lengths = [len(self.ids)] if self.parts is None else self.parts
        return source + np.concatenate([np.arange(length) for length in lengths])


@dataclass(frozen=True)
class Batch:
    """Packed inputs of one forward pass.

    Tokens lie in two runs::

        trunk run:  source tokens, padding
        top run:    source tokens of deep windows, padding, target tokens, padding

    Source tokens lie window after window. Target tokens lie head after head, in order of first appearance. Padding
    tokens belong to no sequence: no token sees them, and their states are not read. They round sizes up, so that the
    same shapes occur again (``round_up``).
    """

    ids: Tensor
    """``(source tokens and padding,)``."""
    positions: Tensor
    """``(source tokens and padding,)`` rows of the position table."""
    windows: Tensor
    """``(source tokens,)`` window of each token, without padding."""
    starts: Tensor
    """``(windows,)`` first token of each window."""
    examples: Tensor
    """``(windows,)`` example of each window."""
    example_count: int
    trunk_plan: AttentionPlan
    deep_tokens: Tensor
    """``(deep source tokens and padding,)`` source tokens that run through the top."""
    top_starts: Tensor
    """``(windows,)`` first token of each window in the top run; -1 where it is not deep."""
    top_lengths: Tensor
    """``(windows,)`` source tokens of each window in the top run; 0 where it is not deep."""
    top_examples: Tensor
    """``(top tokens,)`` example of each token of the top run."""
    top_plan: AttentionPlan | None
    """None if no window is deep."""
    target_ids: dict[str, Tensor]
    """Head name → ``(its target tokens,)``."""
    target_pieces: dict[str, Tensor]
    """Name of a head that copies → ``(its target tokens,)`` backbone tokens that stand for copied words."""
    target_positions: Tensor
    """``(target tokens and padding,)`` rows of the position table; they continue after the last token of the window."""
    target_plan: AttentionPlan | None
    """Queries: target tokens; keys: source tokens, then target tokens. None without targets."""
    target_slices: dict[str, tuple[int, int]]
    """Head name → first and end place of its target tokens in the top run."""


def build_batch(
    windows: Sequence[Window], targets: Sequence[Target], first_position: int, variable_length: bool = False
) -> Batch:
    """Pack windows and targets and plan attention.

    Args:
        windows: all windows; those of one example must be next to each other.
        targets: only for deep windows, and at most one per window, or several of options when nothing is trained; those
            of one head must be next to each other.
        first_position: position of a sequence's first token.
        variable_length: plan attention for the kernels of a GPU instead of padded rectangles.
    """

    def plan(queries: Sequence[Span], keys: Sequence[Span], query_count: int, key_count: int) -> AttentionPlan:
        if variable_length:
            return plan_variable_length(queries, keys)
        return plan_padded(queries, keys, query_count, key_count)

    def filled(counts: Sequence[int]) -> int:
        """Size of a stretch with padding. Several sequences of equal length get none: that size will occur again."""
        total = int(sum(counts))
        is_even = len(counts) > 1 and len(set(counts)) == 1
        return total if variable_length or is_even else round_up(total)

    # 1. Sources: window w has the tokens starts[w] to starts[w] + lengths[w] of the trunk run, all of order 0.
    lengths = np.array([len(w.ids) for w in windows])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    sources = [Span(np.arange(s, s + n), np.zeros(n, dtype=np.int64)) for s, n in zip(starts, lengths, strict=True)]
    # 2. Deep windows: the same in the top run, where the others have length 0 and start -1.
    deep = [w for w, window in enumerate(windows) if window.deep]
    top_lengths = np.array([n if window.deep else 0 for n, window in zip(lengths, windows, strict=True)])
    top_starts = np.where(top_lengths > 0, np.cumsum(top_lengths) - top_lengths, -1)
    # 3. Sizes of the three stretches, with padding.
    target_lengths = [len(t.ids) for t in targets]
    source_total, deep_total = filled(lengths.tolist()), filled([n for n in top_lengths.tolist() if n])
    target_total = filled(target_lengths)
    # 4. Targets: numbered from 0 among themselves, of orders 1, 2, …
    offsets = np.concatenate([[0], np.cumsum(target_lengths)]).astype(np.int64)
    spans = [target.span(int(offset)) for target, offset in zip(targets, offsets[:-1], strict=True)]
    # 5. Sequences of the top run: the source of a deep window, then its target, which lies behind all deep sources.
    top = {w: _shift(sources[w], int(top_starts[w] - starts[w])) for w in deep}
    top_spans = dict(top)
    further: list[tuple[Span, Span]] = []
    for target, span in zip(targets, (_shift(span, deep_total) for span in spans), strict=True):
        own, whole = top[target.window], Span.join([top[target.window], span])
        if top_spans[target.window] is own:
            top_spans[target.window] = whole
        else:  # more options than are read together: they ask in a row of their own
            further.append((span, whole))
    asking = [*top_spans.values(), *(span for span, _ in further)]
    seen = [*top_spans.values(), *(whole for _, whole in further)] if further else asking
    # 6. What targets see in the trunk: their source, then themselves, where all targets lie behind the trunk run.
    after_source = [
        Span.join([sources[t.window], _shift(span, source_total)]) for t, span in zip(targets, spans, strict=True)
    ]
    heads = list(dict.fromkeys(t.head for t in targets))
    target_examples = _fill(np.repeat([windows[t.window].example for t in targets], target_lengths), target_total)
    deep_tokens = np.concatenate([sources[w].tokens for w in deep]) if deep else np.zeros(0, dtype=np.int64)
    examples = np.array([w.example for w in windows])
    window_of_token = np.repeat(np.arange(len(windows)), lengths)
    deep_examples = _fill(examples[window_of_token[deep_tokens]], deep_total)
    return Batch(
        ids=torch.from_numpy(_fill(np.array([i for w in windows for i in w.ids]), source_total)),
        positions=torch.from_numpy(
            _fill(np.concatenate([np.arange(n) for n in lengths]), source_total) + first_position
        ),
        windows=torch.from_numpy(window_of_token),
        starts=torch.from_numpy(starts),
        examples=torch.from_numpy(examples),
        example_count=int(examples.max()) + 1,
        trunk_plan=plan(sources, sources, source_total, source_total),
        deep_tokens=torch.from_numpy(_fill(deep_tokens, deep_total)),
        top_starts=torch.from_numpy(top_starts),
        top_lengths=torch.from_numpy(top_lengths),
        top_examples=torch.from_numpy(np.concatenate([deep_examples, target_examples]).astype(np.int64)),
        top_plan=plan(asking, seen, *[deep_total + target_total] * 2) if deep else None,
        target_ids={head: torch.tensor([i for t in targets if t.head == head for i in t.ids]) for head in heads},
        target_pieces={
            head: torch.tensor([i for t in targets if t.head == head for i in t.pieces or ()])
            for head in dict.fromkeys(t.head for t in targets if t.pieces is not None)
        },
        target_positions=torch.from_numpy(_fill(_target_positions(targets, lengths), target_total) + first_position),
        target_plan=plan(spans, after_source, target_total, source_total + target_total) if targets else None,
        target_slices=_slices(targets, heads, deep_total),
    )


def _shift(span: Span, by: int) -> Span:
    return Span(span.tokens + by, span.orders, span.groups)


def _fill(values: np.ndarray, count: int) -> np.ndarray:
    """Pad ``values`` to ``count`` by repeating the first one, or with 0 if there is none."""
    return np.concatenate([values, np.full(count - len(values), values[0] if len(values) else 0)]).astype(np.int64)


def _target_positions(targets: Sequence[Target], lengths: np.ndarray) -> np.ndarray:
    pieces = [target.places(int(lengths[target.window])) for target in targets]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)


def _slices(targets: Sequence[Target], heads: Sequence[str], start: int) -> dict[str, tuple[int, int]]:
    slices: dict[str, tuple[int, int]] = {}
    for head in heads:
        end = start + sum(len(t.ids) for t in targets if t.head == head)
        slices[head] = (start, end)
        start = end
    return slices


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor inside nested frozen dataclasses, tuples, lists and dictionaries to ``device``."""
    if isinstance(value, Tensor):
        # Only a copy from pinned memory is asynchronous.
        return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)
    if isinstance(value, tuple | list):
        return type(value)(to_device(item, device) for item in value)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        moved = {f.name: to_device(getattr(value, f.name), device) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **moved)
    return value
