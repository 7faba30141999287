"""State of an answer that is being written: its beams, and how a step extends them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dynamo_mtl.tasks.generation_task import GenerationConfig


@dataclass(frozen=True)
class Hypothesis:
    """A decoded answer."""

    ids: list[int]
    """Tokens without start and end."""
    log_probability: float
    """Sum over the tokens, with the end token if it was predicted."""
    tokens: int
    """Number of tokens in the sum."""

    def score(self, length_penalty: float) -> float:
        """Log-probability divided by length to the power of ``length_penalty``."""
        return self.log_probability / max(1, self.tokens) ** length_penalty


class Draft:
    """An answer that is being written by beam search; greedy decoding and sampling are a beam of one.

    Attributes:
        head: task whose embeddings and logits are used.
        weights: ``(adapters,)`` mixing weights.
        beams: log-probability and tokens of every beam; empty once the search has ended.
        parents: for every beam, the index of the earlier beam that it continues.
    """

    def __init__(self, head: str, weights: Tensor, start: int, end: int, settings: GenerationConfig) -> None:
        """
        Args:
            head: task whose vocabulary is used.
            weights: ``(adapters,)`` mixing weights.
            start: the token that is fed first.
            end: the token that ends an answer.
            settings: decoding settings.
        """
        self.head, self.weights, self.start, self.end, self.settings = head, weights, start, end, settings
        self.beams: list[tuple[float, list[int]]] = [(0.0, [])]
        self.parents = [0]
        self.finished: list[Hypothesis] = []
        self.steps = 0

    @property
    def candidates(self) -> int:
        """Continuations per beam in a step: one for a single beam, else twice the beams, since some may end."""
        return 2 * self.settings.num_beams if self.settings.num_beams > 1 else 1

    def banned(self, ids: list[int]) -> list[int]:
        """Tokens that may not follow ``ids``: the end too early, or those that would repeat an n-gram."""
        banned = [self.end] if len(ids) < self.settings.min_new_tokens else []
        size = self.settings.no_repeat_ngram_size
        if size and len(ids) >= size:
            prefix = ids[len(ids) - size + 1 :]
            starts = range(len(ids) - size + 1)
            banned += [ids[s + size - 1] for s in starts if ids[s : s + size - 1] == prefix]
        return banned

    def extend(self, candidates: Sequence[tuple[float, int, int]]) -> None:
        """Take the best ``(log-probability, beam, token)`` candidates, sorted, as the next beams."""
        self.steps += 1
        beams: list[tuple[float, list[int]]] = []
        self.parents = []
        for rank, (total, beam, token) in enumerate(candidates[: self.candidates]):
            ids = self.beams[beam][1]
            if token == self.end:
                if rank < self.settings.num_beams:
                    self.finished.append(Hypothesis(ids, total, len(ids) + 1))
            elif len(beams) < self.settings.num_beams:
                beams.append((total, [*ids, token]))
                self.parents.append(beam)
        done = len(self.finished) >= self.settings.num_beams or not beams
        if self.steps == self.settings.max_new_tokens and not done:
            self.finished += [Hypothesis(ids, total, len(ids)) for total, ids in beams]
            done = True
        self.beams = [] if done else beams

    def ranked(self) -> list[Hypothesis]:
        """Return the finished answers, best first. The search must have ended."""
        return sorted(self.finished, key=lambda h: -h.score(self.settings.length_penalty))

    def best(self) -> Hypothesis:
        """Return the best finished answer. The search must have ended."""
        return self.ranked()[0]
