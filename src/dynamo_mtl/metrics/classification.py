"""Metrics of label predictions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from dynamo_mtl.metrics.bootstrap import ratio_interval


def classification_scores(predictions: Sequence[int | None], references: Sequence[int]) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 averaged over the classes in ``references`` (macro), each in [0, 1].

    Also ``f1_last``, the F1 of the highest class in ``references``, such as the second of two, and Matthews' ``mcc``.

    A prediction of None (no label at all) counts as wrong. A class without any prediction has precision 0.
    """
    pairs = list(zip(predictions, references, strict=True))
    precision: list[float] = []
    recall: list[float] = []
    f1: list[float] = []
    for label in sorted(set(references)):
        hits = sum(p == label == r for p, r in pairs)
        predicted = sum(p == label for p, _ in pairs)
        actual = sum(r == label for _, r in pairs)
        precision.append(hits / predicted if predicted else 0.0)
        recall.append(hits / actual)
        f1.append(2 * hits / (predicted + actual))
    classes = len(f1)
    return {
        "accuracy": sum(p == r for p, r in pairs) / len(pairs),
        "precision": sum(precision) / classes,
        "recall": sum(recall) / classes,
        "f1": sum(f1) / classes,
        "f1_last": f1[-1],
        "mcc": matthews_correlation(predictions, references),
    }


def choice_scores(predictions: Sequence[int | None], references: Sequence[int]) -> dict[str, float]:
    """Accuracy of chosen options, in [0, 1]; None is a choice of nothing."""
    return {"accuracy": sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)}


def kept_scores(answers: Sequence[str | None], references: Sequence[str | None]) -> dict[str, float]:
    """``coverage``, the share of examples with an answer, and the share of right ones among these, each in [0, 1]."""
    kept = [answer == expected for answer, expected in zip(answers, references, strict=True) if answer is not None]
    return {"coverage": len(kept) / len(answers), "kept_accuracy": sum(kept) / max(1, len(kept))}


def matthews_correlation(predictions: Sequence[int | None], references: Sequence[int]) -> float:
    """Correlation of predicted and expected classes: 1 is perfect, 0 is chance (Gorodkin 2004, equation 8).

    A prediction of None is a class of its own, which is never right.
    """
    n, right = len(references), sum(p == r for p, r in zip(predictions, references, strict=True))
    predicted, actual = Counter(predictions), Counter(references)
    both = sum(count * predicted[label] for label, count in actual.items())
    spread = math.sqrt(
        (n * n - sum(count * count for count in predicted.values()))
        * (n * n - sum(count * count for count in actual.values()))
    )
    return (right * n - both) / spread if spread else 0.0


def set_scores(predictions: Sequence[set[int] | None], references: Sequence[set[int]], labels: int) -> dict[str, float]:
    """Scores of sets of labels, each in [0, 1]. A prediction of None is an empty set that is not right.

    Returns:
        ``micro_f1`` over all decisions; ``macro_f1``, the mean over the labels, where a label that never occurs and is
        never predicted counts 0; and ``exact_match``, the share of sets that are wholly right.
    """
    found = [prediction or set() for prediction in predictions]
    pairs = list(zip(found, references, strict=True))
    f1: list[float] = []
    hits = total = 0
    for label in range(labels):
        right = sum(label in p and label in r for p, r in pairs)
        either = sum((label in p) + (label in r) for p, r in pairs)
        f1.append(2 * right / either if either else 0.0)
        hits, total = hits + right, total + either
    exact = sum(p is not None and p == r for p, r in zip(predictions, references, strict=True))
    return {
        "micro_f1": 2 * hits / total if total else 0.0,
        "macro_f1": sum(f1) / labels,
        "exact_match": exact / len(references),
    }


def set_interval(
    predictions: Sequence[set[int] | None], references: Sequence[set[int]], seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of ``micro_f1`` over resamples of the examples (Efron 1979)."""
    found = [prediction or set() for prediction in predictions]
    counts = [(2 * len(p & r), len(p) + len(r)) for p, r in zip(found, references, strict=True)]
    return ratio_interval(np.array(counts), seed)
