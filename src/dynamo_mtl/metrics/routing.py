"""Metrics of routing decisions. Pure functions of probabilities ``(n, tasks)`` and true tasks ``(n,)``."""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence

import numpy as np

from dynamo_mtl.metrics.regression import ranks

CALIBRATION_BINS = 15


def confusion_matrix(predicted: Sequence[int], actual: Sequence[int], tasks: int) -> list[list[int]]:
    """``matrix[i][j]``: inputs of task i that were sent to adapter j."""
    matrix = np.zeros((tasks, tasks), dtype=int)
    np.add.at(matrix, (np.asarray(actual), np.asarray(predicted)), 1)
    return matrix.tolist()


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """``Σ_b (n_b / n) |accuracy_b - confidence_b|`` over equal-width bins (Guo et al. 2017, arXiv 1706.04599)."""
    return sum(
        b["n"] / len(correct) * abs(b["accuracy"] - b["confidence"])
        for b in reliability_bins(confidence, correct, bins)
    )


def reliability_bins(
    confidence: np.ndarray, correct: np.ndarray, bins: int = CALIBRATION_BINS
) -> list[dict[str, float]]:
    """Mean ``confidence``, ``accuracy`` and size ``n`` of each equal-width bin that is not empty."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        {"confidence": float(confidence[own].mean()), "accuracy": float(correct[own].mean()), "n": int(own.sum())}
        for own in (place == b for b in range(bins))
        if own.any()
    ]


def chance_calibration_error(confidence: np.ndarray, bins: int = CALIBRATION_BINS, draws: int = 200) -> float:
    """The ``expected_calibration_error`` that perfectly calibrated answers show on average on as many inputs.

    With few inputs a bin's accuracy differs from its confidence by chance, so the error is never 0 (Bröcker and Smith
    2007, Weather and Forecasting 22(3), consistency resampling): answers are drawn right with their own confidence.

    Args:
        confidence: ``(n,)``.
        bins: number of bins.
        draws: of all answers, from a fixed seed.
    """
    rng = np.random.default_rng(0)
    drawn = (rng.random(len(confidence)) < confidence for _ in range(draws))
    return float(np.mean([expected_calibration_error(confidence, correct, bins) for correct in drawn]))


def brier_score(probabilities: np.ndarray, actual: Sequence[int]) -> float:
    """Mean squared distance of the probabilities from the truth, summed over tasks: 0 is perfect, 2 is worst.

    Brier 1950, Monthly Weather Review 78(1), equation 2.
    """
    truth = np.eye(probabilities.shape[1])[np.asarray(actual)]
    return float(np.square(probabilities - truth).sum(axis=1).mean())


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of wrong answers if only the k most confident are given, for every k (El-Yaniv and Wiener 2010, JMLR 11).

    Returns:
        Coverage ``k / n`` and risk, the share of errors among these k, both ``(n,)``. Equally confident answers are
        taken in random order, so the risk is an expected value.
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


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """Probability that an unknown input scores higher than a known one; equal scores count half.

    This is the area under the ROC curve (Hanley and McNeil 1982, Radiology 143).
    """
    wins = ranks(np.concatenate([known, unknown]))[len(known) :].sum() - len(unknown) * (len(unknown) + 1) / 2
    return float(wins / (len(known) * len(unknown)))


def routing_scores(
    probabilities: np.ndarray, actual: Sequence[int], rejected: Sequence[bool] | None = None
) -> dict[str, float]:
    """Scores of routing.

    Args:
        probabilities: ``(n, tasks)``.
        actual: ``(n,)`` true tasks.
        rejected: ``(n,)`` which inputs were; none by default.

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
    kept = ~np.asarray(rejected) if rejected is not None else np.ones(len(truth), dtype=bool)
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


def collapse_warnings(probabilities: np.ndarray, actual: Sequence[int], names: Sequence[str]) -> list[str]:
    """Warn, in words, if the router uses the adapters badly; empty if all is well.

    An adapter is nearly dead if its share of the weight is less than a tenth of its share of the inputs. It takes
    nearly all if it has over nine tenths of the weight but less than half of the inputs. A router that is always
    certain is at fault only if it is often wrong.

    Args:
        probabilities: ``(n, tasks)``.
        actual: ``(n,)`` true tasks.
        names: names of the tasks.
    """
    truth = np.asarray(actual)
    mix = np.bincount(truth, minlength=len(names)) / len(truth)
    usage = probabilities.mean(axis=0)
    found: list[str] = []
    for name, share, own in zip(names, usage, mix, strict=True):
        weight = f"{100 * share:.1f} % of the routing weight, while {100 * own:.1f} % of the inputs are its own"
        if share < own / 10:
            found.append(f"the adapter of {name} is nearly dead: it has {weight}")
        if share > 0.9 and own < 0.5:
            found.append(f"the adapter of {name} takes nearly all: it has {weight}")
    entropy = float(-(probabilities * np.log(np.clip(probabilities, 1e-12, None))).sum(axis=1).mean())
    accuracy = float((probabilities.argmax(axis=1) == truth).mean())
    if entropy < 0.01 and accuracy < 0.9:
        found.append(f"the router is always certain (entropy {entropy:.4f}) but right for {100 * accuracy:.1f} % only")
    if len(names) > 1 and entropy > 0.9 * np.log(len(names)):
        found.append(f"the router hardly chooses: entropy {entropy:.2f} of at most {np.log(len(names)):.2f}")
    return found


def confused_pairs(
    confusion: Sequence[Sequence[int]],
    names: Sequence[str],
    together: Container[tuple[str, str]] = (),
    least: float = 0.03,
) -> list[str]:
    """Say, in words, which two tasks are confused, the worst first; empty if none are.

    Args:
        confusion: of plain inputs, as ``confusion_matrix`` gives it.
        names: names of the tasks.
        together: pairs that read the same inputs, and are no confusion.
        least: share of the inputs of one task sent to the other that is worth a warning.
    """
    found: list[tuple[float, str]] = []
    for i, j in itertools.combinations(range(len(names)), 2):
        ways = [(confusion[a][b] / sum(confusion[a]), a, b) for a, b in ((i, j), (j, i)) if sum(confusion[a])]
        share, own, other = max(ways, default=(0.0, i, j))
        if share >= least and (names[i], names[j]) not in together:
            count = f"{confusion[own][other]} of {sum(confusion[own])}"
            says = f"{count} plain inputs of {names[own]} are sent to {names[other]}"
            found.append((share, f"{says}. {remedy(names[own], names[other])}"))
    return [sentence for _, sentence in sorted(found, reverse=True)]


def remedy(one: str, other: str) -> str:
    """What helps against confusing two tasks, as a sentence."""
    return (
        f"What helps: more and other texts of both (tasks.{one}.router_files), an instruction with each input "
        f"(tasks.{other}.requires_instruction), or asking both (tasks.{one}.group)."
    )


def length_router(train_lengths: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[int]:
    """Route by input length alone, a baseline that every router must beat.

    Args:
        train_lengths: lengths of each task's training inputs.
        lengths: lengths to route.

    Returns:
        For each length, the task with the largest smoothed share of its training inputs in the bin of that length.
        Each bin is a tenth wider than the one before.
    """

    def place(values: Sequence[int]) -> np.ndarray:
        return np.floor(np.log1p(np.asarray(values)) / np.log(1.1)).astype(int)

    bins = [place(values) for values in train_lengths]
    top = 1 + max(int(b.max()) for b in [*bins, place(lengths)])
    histogram = np.stack([np.bincount(b, minlength=top) / len(b) for b in bins])
    smooth = np.apply_along_axis(lambda row: np.convolve(row, [0.25, 0.5, 0.25], mode="same"), 1, histogram)
    return smooth.argmax(axis=0)[place(lengths)].tolist()
