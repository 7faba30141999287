"""Choose the examples of a training step: a pure function of seed, epoch and step. Independent of task types.

Drawing needs no state, so a run can resume at any step, in any worker process.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def sampling_probabilities(sizes: Sequence[int], exponent: float) -> np.ndarray:
    """Size-tempered probabilities ``p_i ∝ n_i^a``: 1 is proportional, 0 is uniform."""
    weights = np.array(sizes, dtype=float) ** exponent
    return weights / weights.sum()


@dataclass(frozen=True)
class SingleOrder:
    """Batches of one data set: every epoch is a fresh permutation, cut into batches; the last one may be short."""

    size: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return math.ceil(self.size / self.batch_size)

    def batch(self, step: int) -> list[int]:
        """Row numbers of a step, counted over all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        first = position * self.batch_size
        return permutation(self.size, self.seed, epoch)[first : first + self.batch_size].tolist()


@functools.lru_cache(maxsize=16)
def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(size)


@dataclass(frozen=True)
class MixedOrder:
    """Batches that mix several data sets.

    Each data set is read in random order, pass after pass. Within an epoch, no example repeats before all others of its
    data set were drawn. With a share below 1 (a curriculum), examples are drawn from the easiest ones instead.
    """

    sizes: tuple[int, ...]
    batch_size: int
    steps_per_epoch: int
    exponent: float
    seed: int

    def batch(self, step: int, share: float = 1.0) -> list[tuple[int, int]]:
        """``(data set, rank)`` of a step's examples.

        Args:
            step: counted over all epochs.
            share: draw only from the first ``share`` of each data set, whose rows are then ranks in the curriculum.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        members = self._members(epoch)[position]
        if share < 1:
            rng = np.random.default_rng([self.seed, epoch, position, 1])
            limits = [max(1, math.ceil(share * size)) for size in self.sizes]
            return [(int(m), int(rng.integers(limits[m]))) for m in members]
        before = self._before(epoch)[position]
        drawn: list[tuple[int, int]] = []
        for member in members:
            turn, place = divmod(int(before[member]), self.sizes[member])
            order = permutation(self.sizes[member], self.seed + 7919 * (int(member) + 1), epoch * 1000 + turn)
            drawn.append((int(member), int(order[place])))
            before[member] += 1
        return drawn

    def _members(self, epoch: int) -> np.ndarray:
        return _members(self, epoch)

    def _before(self, epoch: int) -> np.ndarray:
        return _drawn_before(self, epoch).copy()


@functools.lru_cache(maxsize=4)
def _members(order: MixedOrder, epoch: int) -> np.ndarray:
    """Data set of every slot of an epoch, ``(steps, batch)``."""
    probabilities = sampling_probabilities(order.sizes, order.exponent)
    rng = np.random.default_rng([order.seed, epoch, 0])
    return rng.choice(len(order.sizes), size=(order.steps_per_epoch, order.batch_size), p=probabilities)


@functools.lru_cache(maxsize=4)
def _drawn_before(order: MixedOrder, epoch: int) -> np.ndarray:
    """How many examples of each data set the epoch drew before each step, ``(steps, data sets)``."""
    members = _members(order, epoch)
    counts = np.stack([(members == m).sum(axis=1) for m in range(len(order.sizes))], axis=1)
    return np.cumsum(counts, axis=0) - counts


def competence(progress: float, start: float) -> float:
    """Share of the examples that a curriculum uses at ``progress`` in [0, 1].

    ``c(t) = min(1, sqrt(t (1 - c0²) / T + c0²))`` (Platanios et al. 2019, arXiv 1903.09848, eq. 7).
    """
    return min(1.0, math.sqrt(progress * (1 - start**2) + start**2))
