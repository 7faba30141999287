"""Metrics of routing decisions. Pure functions of probabilities ``(n, tasks)`` and true tasks ``(n,)``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CALIBRATION_BINS = 15


def confusion_matrix(predicted: Sequence[int], actual: Sequence[int], tasks: int) -> list[list[int]]:
    """``matrix[i][j]``: inputs of task i that were sent to adapter j."""
    matrix = np.zeros((tasks, tasks), dtype=int)
    np.add.at(matrix, (np.asarray(actual), np.asarray(predicted)), 1)
    return matrix.tolist()


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """``Σ_b (n_b / n) |accuracy_b - confidence_b|`` over equal-width bins (Guo et al. 2017, arXiv 1706.04599)."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        (place == b).mean() * abs(correct[place == b].mean() - confidence[place == b].mean())
        for b in range(bins)
        if (place == b).any()
    ]
    return float(sum(gaps))


def brier_score(probabilities: np.ndarray, actual: Sequence[int]) -> float:
    """Mean squared distance of the probabilities from the truth, summed over tasks: 0 is perfect, 2 is worst.

    Brier 1950, Monthly Weather Review 78(1), equation 2.
    """
    truth = np.eye(probabilities.shape[1])[np.asarray(actual)]
    return float(np.square(probabilities - truth).sum(axis=1).mean())


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What share of answers is wrong when only the most confident are given.

    Returns:
        Coverage ``k / n`` and risk ``(n,)``, the share of errors among the k most confident; equally confident ones
        count as answered in a random order, so the risk is the expected one (El-Yaniv and Wiener 2010, JMLR 11).
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence, wrong = confidence[order], 1.0 - correct[order].astype(float)
    _, groups = np.unique(-sorted_confidence, return_inverse=True)
    expected = (np.bincount(groups, weights=wrong) / np.bincount(groups))[groups]
    answered = np.arange(1, len(wrong) + 1)
    return answered / len(wrong), np.cumsum(expected) / answered


def area_under_risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Mean risk over all coverages (Geifman et al. 2019, arXiv 1805.08206, section 2): 0 is perfect."""
    return float(risk_coverage(confidence, correct)[1].mean())


def routing_scores(probabilities: np.ndarray, actual: Sequence[int], threshold: float = 0.0) -> dict[str, float]:
    """Scores of routing.

    Args:
        probabilities: ``(n, tasks)``.
        actual: ``(n,)`` true tasks.
        threshold: inputs with less confidence are rejected.

    Returns:
        ``accuracy``; ``macro``, the mean over tasks; ``worst_task``; ``entropy``, mean in nats; ``load_balance``, one
        minus half the L1 distance between the mean routing and the true task mix (1 is perfect); ``ece`` over
        ``ece_bins`` bins; ``brier``; ``aurc``, the area under the risk-coverage curve; ``confidence``, its mean;
        ``rejected``, the share of inputs, and ``kept_accuracy`` of the others (0 if none is left); ``n``.
    """
    truth = np.asarray(actual)
    predicted = probabilities.argmax(axis=1)
    correct = predicted == truth
    confidence = probabilities.max(axis=1)
    kept = confidence >= threshold
    per_task = [float(correct[truth == task].mean()) for task in np.unique(truth)]
    mix = np.bincount(truth, minlength=probabilities.shape[1]) / len(truth)
    entropy = -(probabilities * np.log(np.clip(probabilities, 1e-12, None))).sum(axis=1)
    return {
        "accuracy": float(correct.mean()),
        "macro": float(np.mean(per_task)),
        "worst_task": min(per_task),
        "entropy": float(entropy.mean()),
        "load_balance": float(1 - np.abs(probabilities.mean(axis=0) - mix).sum() / 2),
        "ece": expected_calibration_error(confidence, correct),
        "ece_bins": CALIBRATION_BINS,
        "brier": brier_score(probabilities, actual),
        "aurc": area_under_risk_coverage(confidence, correct),
        "confidence": float(confidence.mean()),
        "rejected": float(1 - kept.mean()),
        "kept_accuracy": float(correct[kept].mean()) if kept.any() else 0.0,
        "n": len(truth),
    }


def length_router(train_lengths: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[int]:
    """Route by input length alone, the floor that a router must beat.

    Args:
        train_lengths: lengths of each task's training inputs.
        lengths: lengths to route.

    Returns:
        For each the task whose smoothed share of training inputs is largest in its length's bin; bins grow by a tenth.
    """

    def place(values: Sequence[int]) -> np.ndarray:
        return np.floor(np.log1p(np.asarray(values)) / np.log(1.1)).astype(int)

    bins = [place(values) for values in train_lengths]
    top = 1 + max(int(b.max()) for b in [*bins, place(lengths)])
    histogram = np.stack([np.bincount(b, minlength=top) / len(b) for b in bins])
    smooth = np.apply_along_axis(lambda row: np.convolve(row, [0.25, 0.5, 0.25], mode="same"), 1, histogram)
    return smooth.argmax(axis=0)[place(lengths)].tolist()
