"""Metrics of named entities: an entity counts if its characters and its kind are right (CoNLL-2003).

Tjong Kim Sang and De Meulder 2003, W03-0419, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynamo_mtl.metrics.bootstrap import ratio_interval

Entity = tuple[int, int, str]
"""First character, the one after the last, kind."""


def entity_scores(predictions: Sequence[Sequence[Entity]], references: Sequence[Sequence[Entity]]) -> dict[str, float]:
    """Precision, recall and F1 over all entities of all texts, in percent; 0 where there is nothing to divide by."""
    right, found, expected = _counts(predictions, references).sum(axis=0).tolist()
    precision, recall = (100 * right / n if n else 0.0 for n in (found, expected))
    return {"precision": precision, "recall": recall, "f1": 200 * right / (found + expected) if right else 0.0}


def entity_interval(
    predictions: Sequence[Sequence[Entity]], references: Sequence[Sequence[Entity]], seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of F1 over all entities, over resamples of the texts (Efron 1979)."""
    right, found, expected = _counts(predictions, references).T
    return ratio_interval(np.stack([200 * right, found + expected], axis=1), seed)


def _counts(predictions: Sequence[Sequence[Entity]], references: Sequence[Sequence[Entity]]) -> np.ndarray:
    """``(texts, 3)`` entities that are right, found, and expected."""
    pairs = [(set(p), set(r)) for p, r in zip(predictions, references, strict=True)]
    return np.array([[len(p & r), len(p), len(r)] for p, r in pairs], dtype=np.int64).reshape(-1, 3)
