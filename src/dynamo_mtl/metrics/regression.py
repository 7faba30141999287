"""Metrics of predicted scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynamo_mtl.metrics.bootstrap import resamples


def regression_scores(predictions: Sequence[float | None], references: Sequence[float]) -> dict[str, float]:
    """Pearson and Spearman correlation, mean absolute error, and root mean squared error.

    A prediction of None (no score at all) gets the mean of the references, so that all of them together correlate 0.
    Correlations are 0 where one side is constant.
    """
    expected = np.asarray(references, dtype=float)
    middle = float(expected.mean())
    found = np.array([middle if p is None else p for p in predictions], dtype=float)
    return {
        "pearson": correlation(found, expected),
        "spearman": correlation(ranks(found), ranks(expected)),
        "mae": float(np.abs(found - expected).mean()),
        "rmse": float(np.sqrt(np.square(found - expected).mean())),
    }


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation of two ``(n,)``; 0 where one is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value from 1; equal values share the mean of their ranks, as Spearman's correlation needs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def spearman_interval(
    predictions: Sequence[float | None], references: Sequence[float], seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of Spearman's correlation over resamples of the examples (Efron 1979)."""
    expected = np.asarray(references, dtype=float)
    found = np.array([expected.mean() if p is None else p for p in predictions], dtype=float)
    drawn = [correlation(ranks(found[own]), ranks(expected[own])) for own in resamples(len(expected), seed)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
