"""Metrics of label predictions."""

from __future__ import annotations

from collections.abc import Sequence


def classification_scores(predictions: Sequence[int | None], references: Sequence[int]) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 averaged over the classes in ``references`` (macro), each in [0, 1].

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
    }
