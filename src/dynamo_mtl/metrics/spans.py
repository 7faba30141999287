"""Metrics of extractive answers, as in the SQuAD v1.1 evaluation (Rajpurkar et al. 2016, arXiv 1606.05250)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(prediction: str, reference: str) -> float:
    """F1 over the bags of normalised words."""
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(reference).split()
    common = sum((Counter(predicted) & Counter(expected)).values())
    if not predicted or not expected:
        return float(predicted == expected)
    return 2 * common / (len(predicted) + len(expected))


def span_scores(
    predictions: Sequence[tuple[str, int, int] | None], references: Sequence[Sequence[tuple[str, int]]]
) -> dict[str, float]:
    """Exact match and F1 (best over the references, in percent), and accuracy of start and end characters in [0, 1].

    Args:
        predictions: answer text with its character span, or None.
        references: for each, all accepted answers with their start characters; none if there is no answer.
    """
    exact = f1 = start = end = 0.0
    for prediction, accepted in zip(predictions, references, strict=True):
        if prediction is None:
            continue
        text, first, last = prediction
        if not accepted:  # as in SQuAD 2.0: nothing is right where there is no answer
            nothing = float(not normalize_answer(text))
            exact, f1, start, end = exact + nothing, f1 + nothing, start + nothing, end + nothing
            continue
        exact += max(float(normalize_answer(text) == normalize_answer(a)) for a, _ in accepted)
        f1 += max(token_f1(text, a) for a, _ in accepted)
        start += any(first == s for _, s in accepted)
        end += any(last == s + len(a) for a, s in accepted)
    n = len(references)
    return {
        "exact_match": 100 * exact / n,
        "f1": 100 * f1 / n,
        "start_accuracy": start / n,
        "end_accuracy": end / n,
    }


def no_answer_scores(
    predictions: Sequence[tuple[str, int, int] | None], references: Sequence[Sequence[tuple[str, int]]]
) -> dict[str, float]:
    """F1 of the questions that have an answer, and accuracy of those that have none, in percent.

    These are ``HasAns_f1`` and ``NoAns_f1`` of the SQuAD 2.0 evaluation (Rajpurkar et al. 2018, arXiv 1806.03822).
    """
    pairs = list(zip(predictions, references, strict=True))
    parts = {name: [(p, r) for p, r in pairs if bool(r) == has] for name, has in (("has", True), ("no", False))}
    f1 = {name: span_scores(*zip(*own, strict=True))["f1"] if own else 0.0 for name, own in parts.items()}
    return {"has_answer_f1": f1["has"], "no_answer_f1": f1["no"]}
