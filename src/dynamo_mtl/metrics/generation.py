"""Metrics of generated text, by the field's reference packages."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Sequence

import sacrebleu
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2, -L and -Lsum F-measures with stemming, in percent (rouge-score).

    -Lsum (Lin 2004, section 3.2) takes unions over sentences, which are split where a blank follows ``.``, ``!`` or
    ``?``; for single sentences it equals -L.
    """
    from rouge_score import rouge_scorer  # loads nltk, which takes longer than all of this package

    scorer = rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [
        scorer.score(_sentence_lines(reference), _sentence_lines(prediction))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {name: 100 * sum(s[name].fmeasure for s in scores) / len(scores) for name in ROUGE}


def _sentence_lines(text: str) -> str:
    return re.sub(r"(?<=[.!?])\s+", "\n", text.strip())


def signatures() -> dict[str, str]:
    """Sacrebleu's signatures, which say how to get comparable figures."""
    metrics = {"bleu": BLEU(), "sentence_bleu": BLEU(effective_order=True), "chrf": CHRF()}
    for metric in metrics.values():
        metric.corpus_score(["a"], [["a"]])  # the number of references is known only once something was scored
    return {name: str(metric.get_signature()) for name, metric in metrics.items()}


def bleu_interval(predictions: Sequence[str], references: Sequence[str]) -> tuple[float, float]:
    """95 % bootstrap interval of ``bleu`` over examples (Koehn 2004, W04-3250; sacrebleu, 1,000 resamples)."""
    score = BLEU().corpus_score(list(predictions), [list(references)], n_bootstrap=1000)
    middle, half = score._mean, score._ci
    return max(0.0, middle - half), min(100.0, middle + half)


def bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU of raw text, in percent: ``nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp`` (sacrebleu)."""
    return sacrebleu.corpus_bleu(list(predictions), [list(references)]).score


def sentence_bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Mean BLEU of single examples, in percent (sacrebleu's, smoothed, up to the longest n-gram that fits).

    Every example counts the same, while long examples dominate corpus BLEU.
    """
    scores = [
        sacrebleu.sentence_bleu(prediction, [reference]).score
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return sum(scores) / len(scores)


def chrf(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF2, in percent (sacrebleu)."""
    return sacrebleu.corpus_chrf(list(predictions), [list(references)]).score


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of predictions that equal their reference up to surrounding blanks, in [0, 1]."""
    hits = sum(p.strip() == r.strip() for p, r in zip(predictions, references, strict=True))
    return hits / len(references)


def collapse_blanks(code: str) -> str:
    """Replace every run of blanks inside a line by one blank, for comparison; line breaks stay."""
    return "\n".join(re.sub(r"[ \t]+", " ", line).strip() for line in code.strip().splitlines())


def parses(code: str) -> bool:
    """Whether code is syntactically valid Python, as it is or as a fragment.

    Fragments are dedented and completed: a last line that opens a block gets a ``pass`` (``try`` also a ``finally``), a
    first ``elif``, ``else``, ``except`` or ``finally`` gets an opening block, and a decorator gets a function.
    """
    code = textwrap.dedent(code).strip()
    if not code:
        return False
    last = code.splitlines()[-1]
    if last.rstrip().endswith(":"):
        indent = last[: len(last) - len(last.lstrip())]
        code = f"{code}\n{indent}    pass"
        if re.match(r"try\s*:", last.lstrip()):
            code = f"{code}\n{indent}finally:\n{indent}    pass"
    elif last.lstrip().startswith("@"):
        code = f"{code}\ndef dummy():\n    pass"
    first_word = re.match(r"[a-z]*", code)
    word = first_word.group() if first_word else ""
    if word in ("elif", "else"):
        code = f"if True:\n    pass\n{code}"
    elif word in ("except", "finally"):
        code = f"try:\n    pass\n{code}"
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
