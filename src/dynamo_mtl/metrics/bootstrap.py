"""Bootstrap intervals: how far a score would move with other examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of per-example values, over resamples of the examples.

    Efron 1979, Annals of Statistics 7(1).
    """
    sample = np.asarray(values, dtype=float)
    low, high = np.percentile(sample[resamples(len(sample), seed)].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def ratio_interval(counts: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of ``Σ counts[:, 0] / Σ counts[:, 1]`` over resamples of the examples (Efron 1979)."""
    above, below = np.moveaxis(counts[resamples(len(counts), seed)].sum(axis=1), 1, 0)
    low, high = np.percentile(above / np.maximum(1, below), [2.5, 97.5])
    return float(low), float(high)


def resamples(count: int, seed: int = 0) -> np.ndarray:
    """``(resamples, count)`` numbers of examples, drawn with replacement."""
    return np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
