"""Decoding with a key/value cache: greedy, beam search and sampling over rows of one task.

Rows whose search has ended leave the batch; storage for keys and values is allocated once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynamo_mtl.model.batch import Batch
from dynamo_mtl.model.dynamo import DynamoModel
from dynamo_mtl.model.encoder import Cache
from dynamo_mtl.model.heads import Copyable
from dynamo_mtl.model.lora import Mix
from dynamo_mtl.tasks.generation_task import GenerationConfig

COMPACT_SHARE = 0.75
"""The batch is compacted once at most that share of its rows is still being searched."""


@dataclass(frozen=True)
class Hypothesis:
    """A decoded answer."""

    ids: list[int]
    """Without start and end."""
    log_probability: float
    """Sum over its tokens, the end included if it was predicted."""
    tokens: int
    """How many tokens the sum is over."""

    def score(self, length_penalty: float) -> float:
        """Log-probability divided by length to the power of ``length_penalty``."""
        return self.log_probability / max(1, self.tokens) ** length_penalty


def make_cache(recorded: Sequence[Tensor], batch: Batch, windows: Sequence[int], extra: int, heads: int) -> Cache:
    """Lay the recorded keys and values of chosen windows into a cache with room for ``extra`` more tokens a row."""
    numbers = torch.tensor(windows, device=batch.ids.device)
    starts, lengths = batch.top_starts[numbers], batch.top_lengths[numbers]
    places = torch.arange(int(lengths.max()), device=numbers.device)
    index = (starts[:, None] + places).clamp_max(len(recorded[0]) - 1)
    # What lies beyond a row's length is overwritten before it is attended to, or masked.
    width = recorded[0].shape[1] // (2 * heads)
    storage = recorded[0].new_zeros(len(recorded), 2, len(windows), heads, len(places) + extra, width)
    for layer, pairs in enumerate(recorded):
        storage[layer, ..., : len(places), :] = pairs[index].unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    return Cache(storage, lengths)


class _Search:
    """Beam search of one input; greedy decoding is a beam of one."""

    def __init__(self, settings: GenerationConfig, end: int) -> None:
        self.settings, self.end = settings, end
        self.beams: list[tuple[float, list[int]]] = [(0.0, [])]
        self.finished: list[Hypothesis] = []
        self.parents: list[int] = []

    @property
    def done(self) -> bool:
        return len(self.finished) >= self.settings.num_beams or not self.beams

    def banned(self, ids: list[int]) -> list[int]:
        """Tokens that may not follow ``ids``: the end too early, or those that would repeat an n-gram."""
        banned = [self.end] if len(ids) < self.settings.min_new_tokens else []
        size = self.settings.no_repeat_ngram_size
        if size and len(ids) >= size:
            prefix = ids[len(ids) - size + 1 :]
            starts = range(len(ids) - size + 1)
            banned += [ids[s + size - 1] for s in starts if ids[s : s + size - 1] == prefix]
        return banned

    def extend(self, candidates: Sequence[tuple[float, int, int]], last: bool) -> None:
        """Take the best ``(log-probability, beam, token)`` candidates, sorted, as the next beams."""
        beams: list[tuple[float, list[int]]] = []
        self.parents = []
        for rank, (total, beam, token) in enumerate(candidates):
            ids = self.beams[beam][1]
            if token == self.end:
                if rank < self.settings.num_beams:
                    self.finished.append(Hypothesis(ids, total, len(ids) + 1))
            elif len(beams) < self.settings.num_beams:
                beams.append((total, [*ids, token]))
                self.parents.append(beam)
        if last and not self.done:
            self.finished += [Hypothesis(ids, total, len(ids)) for total, ids in beams]
        self.beams = beams
        if self.done or last:
            self.beams = []

    def best(self) -> Hypothesis:
        return max(self.finished, key=lambda h: h.score(self.settings.length_penalty))


@torch.inference_mode()
def generate(
    model: DynamoModel,
    head: str,
    cache: Cache,
    weights: Tensor,
    start: int,
    end: int,
    settings: GenerationConfig,
    *,
    active: Sequence[int] | None = None,
    source: Copyable | None = None,
) -> list[Hypothesis]:
    """Decode all rows of a cache in the vocabulary of ``head``.

    Args:
        model: the routed model, in evaluation mode.
        head: task whose embeddings and logits are used.
        cache: source keys and values, a row for each input, with room for ``max_new_tokens``.
        weights: ``(rows, adapters)`` mixing weights.
        start: token fed first.
        end: token that ends an answer.
        settings: decoding settings.
        active: adapters with a weight other than zero, if known.
        source: what each row may copy, where the head copies.

    Returns:
        The best hypothesis of each row.
    """
    searches = [_Search(settings, end) for _ in range(len(weights))]
    offset = model.encoder.config.first_position
    alive = list(range(len(searches)))
    row_owner = list(alive)
    mix = _mix(model, weights, row_owner, active)
    ids = torch.full((len(row_owner),), start, device=weights.device)
    for step in range(settings.max_new_tokens):
        logits = model.decode_step(head, ids, cache.lengths + offset, cache, mix, source)
        log_probabilities = torch.log_softmax(logits, dim=-1)
        _advance(searches, row_owner, log_probabilities, step + 1 == settings.max_new_tokens)
        alive = [owner for owner in dict.fromkeys(row_owner) if searches[owner].beams]
        if not alive:
            break
        rows, owners, tokens = _next_rows(searches, row_owner, alive)
        if owners != row_owner or rows != list(range(len(row_owner))):
            kept = torch.tensor(rows, device=weights.device)
            cache.select(kept)
            source = source and source.select(kept)
        if owners != row_owner:
            row_owner = owners
            mix = _mix(model, weights, row_owner, active)
        ids = torch.tensor(tokens, device=weights.device)
    return [search.best() for search in searches]


def _mix(model: DynamoModel, weights: Tensor, owners: list[int], active: Sequence[int] | None) -> Mix:
    rows = torch.tensor(owners, device=weights.device)
    return model.bank.mix(weights, rows, model.dtype, active)


def _advance(searches: list[_Search], row_owner: list[int], log_probabilities: Tensor, last: bool) -> None:
    """Give every search its best candidates: several beams get twice as many, so that ends do not starve them."""
    rows_of: dict[int, list[int]] = {}
    for row, owner in enumerate(row_owner):
        if searches[owner].beams:
            rows_of.setdefault(owner, []).append(row)
    for owner, rows in rows_of.items():
        for row, (_, ids) in zip(rows, searches[owner].beams, strict=True):
            banned = searches[owner].banned(ids)
            if banned:
                log_probabilities[row, banned] = float("-inf")
    settings = searches[0].settings
    wanted = 2 * settings.num_beams if settings.num_beams > 1 else 1
    if settings.sampling_temperature is None:
        best, tokens = log_probabilities.topk(min(wanted, log_probabilities.shape[1]), dim=1)
    else:
        tokens = torch.multinomial(torch.softmax(log_probabilities / settings.sampling_temperature, dim=1), 1)
        best = log_probabilities.gather(1, tokens)
    best_list, token_list = best.tolist(), tokens.tolist()
    for owner, rows in rows_of.items():
        candidates = [
            (searches[owner].beams[beam][0] + value, beam, token)
            for beam, row in enumerate(rows)
            for value, token in zip(best_list[row], token_list[row], strict=True)
            if value > float("-inf")
        ]
        candidates.sort(key=lambda c: (-c[0], c[1], c[2]))
        searches[owner].extend(candidates[:wanted], last)


def _next_rows(
    searches: list[_Search], row_owner: list[int], alive: list[int]
) -> tuple[list[int], list[int], list[int]]:
    """Old row, owner and next token of every row; ended searches stay as idle rows until compaction is worth it."""
    first_row: dict[int, int] = {}
    for row, owner in enumerate(row_owner):
        first_row.setdefault(owner, row)
    compact = len(alive) <= COMPACT_SHARE * len(first_row)
    rows: list[int] = []
    owners: list[int] = []
    tokens: list[int] = []
    for owner, first in first_row.items():
        search = searches[owner]
        if search.beams:
            for (_, ids), parent in zip(search.beams, search.parents, strict=True):
                rows.append(first + parent)
                owners.append(owner)
                tokens.append(ids[-1])
        elif not compact:
            rows.append(first)
            owners.append(owner)
            tokens.append(search.end)
    return rows, owners, tokens
