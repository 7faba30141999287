"""Decode text with a key/value cache: greedy, beam search and sampling, with answers of several tasks in one batch.

Answers join a running decoder between two steps and leave it when their search has ended (iteration-level scheduling,
Yu et al. 2022, Orca, OSDI '22, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynamo_mtl.inference.draft import Draft
from dynamo_mtl.model.batch import Batch
from dynamo_mtl.model.dynamo import DynamoModel, HeadRows
from dynamo_mtl.model.encoder import Cache
from dynamo_mtl.model.heads import Copyable
from dynamo_mtl.model.mixing import Mix, mix_adapters

COMPACT_SHARE = 0.75
"""Compact the batch when at most this share of its drafts is still being written."""


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


@dataclass(frozen=True)
class _Group:
    """The rows of one head."""

    rows: list[int]
    drafts: list[tuple[Draft, list[int]]]
    """Every draft of the head, with the positions of its beams in ``rows``."""


class Decoder:
    """Writes any number of drafts at once, one token per step. Their tasks and settings may differ.

    Attributes:
        drafts: drafts that occupy rows; some of them may have ended.
    """

    def __init__(self, model: DynamoModel) -> None:
        """
        Args:
            model: in evaluation mode.
        """
        self.model = model
        self._forget()

    def _forget(self) -> None:
        self.drafts: list[Draft] = []
        self._owners: list[int] = []
        """Row → index in ``drafts``."""
        self._active: list[int] = []
        """Adapters that some draft uses."""
        self._cache: Cache | None = None
        self._room: dict[Draft, int] = {}
        """The most cache positions that each draft may need."""
        self._sources: dict[str, Copyable] = {}
        """Head → what its rows may copy."""
        self._groups: dict[str, _Group] = {}
        self._mix: Mix | None = None

    def add(self, drafts: Sequence[Draft], cache: Cache, active: Sequence[int], source: Copyable | None = None) -> None:
        """Add drafts of one head.

        Args:
            drafts: new drafts.
            cache: keys and values of their sources, one row per draft, with room for the new tokens.
            active: adapters with a nonzero weight in at least one of the drafts.
            source: what each draft may copy, if the head can copy.
        """
        if self._cache is not None:
            self._arrange(drop_idle=True)
        for draft, length in zip(drafts, cache.lengths.tolist(), strict=True):
            self._room[draft] = length + draft.settings.max_new_tokens
        first, head = len(self.drafts), drafts[0].head
        self.drafts += drafts
        self._owners += range(first, len(self.drafts))
        self._active = sorted({*self._active, *active})
        self._cache = cache if self._cache is None else self._cache.joined(cache)
        if source is not None:
            self._sources[head] = self._sources[head].joined(source) if head in self._sources else source
        self._plan()

    @torch.inference_mode()
    def drop(self, drafts: Sequence[Draft]) -> None:
        """Stop writing some of ``self.drafts`` and remove them at once."""
        for draft in drafts:
            draft.beams = []
        if drafts:
            self._arrange(drop_idle=True)

    @torch.inference_mode()
    def step(self) -> list[Draft]:
        """Write one token of every draft. Returns those that have ended with it."""
        assert self._cache is not None
        assert self._mix is not None
        device, cache = self._cache.lengths.device, self._cache
        tokens = [ids[-1] if ids else d.start for d in self.drafts for _, ids in d.beams or [(0.0, [d.end])]]
        groups = [
            HeadRows(
                head,
                None if len(self._groups) == 1 else torch.tensor(group.rows, device=device),
                self._sources.get(head),
            )
            for head, group in self._groups.items()
        ]
        positions = cache.lengths + self.model.encoder.config.first_position
        logits = self.model.decode_step(groups, torch.tensor(tokens, device=device), positions, cache, self._mix)
        writing = [draft for draft in self.drafts if draft.beams]
        for group, scores in zip(self._groups.values(), logits, strict=True):
            _advance(group, torch.log_softmax(scores, dim=-1))
        ended = [draft for draft in writing if not draft.beams]
        self._arrange(drop_idle=len(writing) - len(ended) <= COMPACT_SHARE * len(self.drafts))
        return ended

    def _arrange(self, drop_idle: bool) -> None:
        """Move every beam to the row of its parent. Ended drafts keep one row unless ``drop_idle`` removes them."""
        assert self._cache is not None
        first_row: dict[int, int] = {}
        for row, owner in enumerate(self._owners):
            first_row.setdefault(owner, row)
        kept = [number for number, draft in enumerate(self.drafts) if draft.beams or not drop_idle]
        rows: list[int] = []
        owners: list[int] = []
        for place, number in enumerate(kept):
            draft = self.drafts[number]
            parents = draft.parents if draft.beams else [0]
            rows += [first_row[number] + parent for parent in parents]
            owners += [place] * len(parents)
            draft.parents = list(range(len(parents)))
        if not kept:
            self._forget()
            return
        if rows != list(range(len(self._owners))):
            self._select(rows, [self.drafts[kept[place]] for place in owners])
        if owners != self._owners or len(kept) < len(self.drafts):
            self.drafts = [self.drafts[number] for number in kept]
            self._owners = owners
            self._plan()
        idle = [row for row, owner in enumerate(self._owners) if not self.drafts[owner].beams]
        if idle:  # these rows still take part in every step, so keep them from outgrowing the cache
            self._cache.lengths[torch.tensor(idle, device=self._cache.lengths.device)] = 0

    def _select(self, rows: list[int], drafts: list[Draft]) -> None:
        """Select rows, which may drop, repeat or reorder them. ``drafts`` are the owners of the selected rows."""
        assert self._cache is not None
        device = self._cache.lengths.device
        self._room = {draft: self._room[draft] for draft in drafts}
        self._cache.select(torch.tensor(rows, device=device), max(self._room.values()))
        for head, source in list(self._sources.items()):
            place = {row: number for number, row in enumerate(self._groups[head].rows)}
            own = [place[row] for row, draft in zip(rows, drafts, strict=True) if draft.head == head]
            if own:
                self._sources[head] = source.select(torch.tensor(own, device=device))
            else:
                del self._sources[head]

    def _plan(self) -> None:
        """Work out which rows belong to which head, and what mixture each row has."""
        assert self._cache is not None
        device = self._cache.lengths.device
        weights = torch.stack([draft.weights for draft in self.drafts])
        owners = torch.tensor(self._owners, device=device)
        self._mix = mix_adapters(self.model.bank, weights, owners, self.model.dtype, self._active)
        self._groups = {}
        for row, owner in enumerate(self._owners):
            draft = self.drafts[owner]
            group = self._groups.setdefault(draft.head, _Group([], []))
            if not group.drafts or group.drafts[-1][0] is not draft:
                group.drafts.append((draft, []))
            group.drafts[-1][1].append(len(group.rows))
            group.rows.append(row)


def _advance(group: _Group, log_probabilities: Tensor) -> None:
    """Give every draft of a head its best candidates.

    Args:
        group: the head's rows.
        log_probabilities: ``(rows, tokens)`` of the next token; changed in place.
    """
    writing = [(draft, places) for draft, places in group.drafts if draft.beams]
    for draft, places in writing:
        for place, (_, ids) in zip(places, draft.beams, strict=True):
            banned = draft.banned(ids)
            if banned:
                log_probabilities[place, banned] = float("-inf")
    wanted = min(max((draft.candidates for draft, _ in writing), default=1), log_probabilities.shape[1])
    best, tokens = log_probabilities.topk(wanted, dim=1)
    drawn = [(places[0], draft.settings.sampling_temperature) for draft, places in writing]
    drawn = [(place, temperature) for place, temperature in drawn if temperature is not None]
    if drawn:
        places, temperatures = zip(*drawn, strict=True)
        rows = torch.tensor(places, device=best.device)
        own = log_probabilities[rows]
        choices = torch.multinomial(torch.softmax(own / own.new_tensor(temperatures)[:, None], dim=1), 1)
        best[rows, :1], tokens[rows, :1] = own.gather(1, choices), choices
    best_list, token_list = best.tolist(), tokens.tolist()
    for draft, places in writing:
        candidates = [
            (draft.beams[beam][0] + value, beam, token)
            for beam, place in enumerate(places)
            for value, token in zip(
                best_list[place][: draft.candidates], token_list[place][: draft.candidates], strict=True
            )
            if value > float("-inf")
        ]
        candidates.sort(key=lambda c: (-c[0], c[1], c[2]))
        draft.extend(candidates)
