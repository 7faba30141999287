"""Guess before training which tasks the router will confuse: by the words of their inputs alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dynamo_mtl.model.backbone import SourceTokenizer
from dynamo_mtl.tasks.task import Example

MOST = 500
"""Inputs of each split of a task that are compared."""
CHARACTERS = 600
"""Of an input, counted from its start."""


def look_alike(
    train: Mapping[str, Sequence[Example]], validation: Mapping[str, Sequence[Example]], tokenizer: SourceTokenizer
) -> dict[str, dict[str, float]]:
    """How often inputs of one task look like those of another.

    Multinomial naive Bayes over the tokenizer's pieces, with add-one smoothing and equal priors (Manning et al. 2008,
    Introduction to Information Retrieval, section 13.2). It knows no order of words, so a router does better.

    Args:
        train: task → examples to learn from.
        validation: task → examples to judge.
        tokenizer: the backbone's.

    Returns:
        Task → other task → share of its validation inputs that are taken for the other's; only shares above 0.
    """
    names = [name for name in train if train[name] and validation.get(name)]
    if len(names) < 2:
        return {}
    learned = {name: [_pieces(one, tokenizer) for one in train[name][:MOST]] for name in names}
    judged = {name: [_pieces(one, tokenizer) for one in validation[name][:MOST]] for name in names}
    size = 1 + max(max(own, default=0) for texts in (*learned.values(), *judged.values()) for own in texts)
    counts = np.stack([np.bincount(np.concatenate([*learned[name], []]).astype(int), minlength=size) for name in names])
    log_likelihood = np.log((counts + 1) / (counts + 1).sum(axis=1, keepdims=True))
    found: dict[str, dict[str, float]] = {}
    for number, name in enumerate(names):
        taken = [int(log_likelihood[:, pieces].sum(axis=1).argmax()) for pieces in judged[name]]
        shares = np.bincount(taken, minlength=len(names)) / len(taken)
        found[name] = {names[i]: float(share) for i, share in enumerate(shares) if i != number and share > 0}
    return found


def _pieces(example: Example, tokenizer: SourceTokenizer) -> list[int]:
    text = example.text if example.context is None else f"{example.text} {example.context}"
    return tokenizer.backend.encode(text[:CHARACTERS], add_special_tokens=False).ids
