"""Metrics of named entities: an entity counts if its characters and its kind are right (CoNLL-2003).

Tjong Kim Sang and De Meulder 2003, W03-0419, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

Entity = tuple[int, int, str]
"""First character, the one after the last, kind."""


def entity_scores(predictions: Sequence[Sequence[Entity]], references: Sequence[Sequence[Entity]]) -> dict[str, float]:
    """Precision, recall and F1 over all entities of all texts, in percent; 0 where there is nothing to divide by."""
    found = sum(len(set(own)) for own in predictions)
    expected = sum(len(set(own)) for own in references)
    right = sum(len(set(p) & set(r)) for p, r in zip(predictions, references, strict=True))
    precision, recall = (100 * right / n if n else 0.0 for n in (found, expected))
    total = precision + recall
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / total if total else 0.0}
