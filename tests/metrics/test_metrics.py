"""Metrics against the reference packages and against numbers worked by hand."""

import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer

from dynamo_mtl.metrics.bootstrap import bootstrap_interval
from dynamo_mtl.metrics.classification import classification_scores
from dynamo_mtl.metrics.generation import (
    bleu,
    bleu_interval,
    chrf,
    collapse_blanks,
    exact_match,
    parses,
    rouge,
    sentence_bleu,
)
from dynamo_mtl.metrics.routing import (
    area_under_risk_coverage,
    chance_calibration_error,
    collapse_warnings,
    confused_pairs,
    confusion_matrix,
    expected_calibration_error,
    length_router,
    risk_coverage,
    routing_scores,
)
from dynamo_mtl.metrics.spans import normalize_answer, span_scores, token_f1

PREDICTIONS = ["The cat sat on the mat.", "Two dogs are running", "ein Haus"]
REFERENCES = ["The cat is sitting on the mat.", "Two dogs run on grass", "ein Haus"]


def test_rouge_equals_rouge_score():
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    ours = rouge(PREDICTIONS, REFERENCES)
    for name, value in ours.items():
        each = [scorer.score(r, p)[name].fmeasure for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
        assert value == pytest.approx(100 * np.mean(each))
    # "sat/sitting" differ under the stemmer, "running/run" do not: 10/13 and 4·2/9 unigrams, then all.
    assert ours["rouge1"] == pytest.approx(100 * (2 * 5 / 13 + 2 * 3 / 9 + 1) / 3)


def test_bleu_and_chrf_equal_sacrebleu_and_tell_perfect_from_wrong():
    assert bleu(PREDICTIONS, REFERENCES) == sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES]).score
    assert chrf(PREDICTIONS, REFERENCES) == sacrebleu.corpus_chrf(PREDICTIONS, [REFERENCES]).score
    assert bleu(REFERENCES, REFERENCES) == pytest.approx(100)
    assert chrf(["zzz"] * 3, REFERENCES) < 1


def test_exact_match_ignores_surrounding_blanks_only():
    assert exact_match([" a b ", "a  b", "A b"], ["a b", "a b", "a b"]) == pytest.approx(1 / 3)


def test_spans_equal_the_reference_implementation():
    torchmetrics = pytest.importorskip("torchmetrics.text")
    cases = [
        ("The Eiffel Tower", ["Eiffel Tower", "the tower"]),
        ("in 1889, Paris", ["1889"]),
        ("", ["something"]),
        ("an apple!", ["apple"]),
        ("completely wrong", ["right answer"]),
    ]
    metric = torchmetrics.SQuAD()
    for number, (prediction, accepted) in enumerate(cases):
        target = {"answers": {"text": accepted, "answer_start": [0] * len(accepted)}, "id": str(number)}
        metric.update([{"prediction_text": prediction, "id": str(number)}], [target])
    expected = metric.compute()
    ours = span_scores([(p, 0, len(p)) for p, _ in cases], [[(a, 0) for a in accepted] for _, accepted in cases])
    assert ours["exact_match"] == pytest.approx(float(expected["exact_match"]))
    assert ours["f1"] == pytest.approx(float(expected["f1"]), abs=1e-4)


def test_span_scores_by_hand():
    scores = span_scores([("red fox", 4, 11), None], [[("red foxes", 4), ("the red fox", 0)], [("x", 0)]])
    assert scores == {"exact_match": 50.0, "f1": 50.0, "start_accuracy": 0.5, "end_accuracy": 0.5}
    assert normalize_answer("The  U.S.A., an idea") == "usa idea"
    assert token_f1("a red fox", "red foxes") == pytest.approx(0.5)


def test_classification_scores_by_hand():
    scores = classification_scores([1, 0, None, 1], [1, 0, 0, 0])
    # Class 0: 1 hit, 1 predicted, 3 true; class 1: 1 hit, 2 predicted, 1 true.
    assert scores["accuracy"] == 0.5
    assert scores["precision"] == pytest.approx((1 + 1 / 2) / 2)
    assert scores["recall"] == pytest.approx((1 / 3 + 1) / 2)
    assert scores["f1"] == pytest.approx((2 / 4 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("code", "valid"),
    [
        ("x = 1", True),
        ("    return x", True),
        ("def strip_tags ( value ) :", True),
        ("    if x :\n        for y in x :", True),
        ("elif x :", True),
        ("else :\n    y = 2", True),
        ("try :", True),
        ("\tif x:\n\t\twhile y:", True),
        ("except ValueError :", True),
        ("finally :", True),
        ("@ decorated ( 1 )", True),
        ("class A ( B ) :", True),
        ("x = = 1", False),
        ("def f(:", False),
        ("", False),
        ("y = 'open", False),
    ],
)
def test_parses_completes_fragments_only(code, valid):
    assert parses(code) is valid


def test_collapse_blanks_keeps_lines():
    assert collapse_blanks("def  f ( x ) :\n\treturn   x\n") == "def f ( x ) :\nreturn x"


def test_routing_scores_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]])
    scores = routing_scores(probabilities, [0, 0, 1, 1])
    assert scores["accuracy"] == 0.75
    assert scores["macro"] == 0.75
    assert scores["worst_task"] == 0.5
    assert scores["load_balance"] == pytest.approx(1 - (0.15 + 0.15) / 2)
    entropy = -(probabilities * np.log(probabilities)).sum(axis=1).mean()
    assert scores["entropy"] == pytest.approx(entropy)
    # Four confidences in four bins: |1 - 0.9|, |1 - 0.6|, |1 - 0.7|, |0 - 0.8|, a quarter each.
    assert scores["ece"] == pytest.approx((0.1 + 0.4 + 0.3 + 0.8) / 4)
    # Twice the squared distance of the true task's probability from 1, since there are two tasks.
    assert scores["brier"] == pytest.approx(2 * (0.1**2 + 0.4**2 + 0.3**2 + 0.8**2) / 4)
    # In the order 0.9, 0.8 (wrong), 0.7, 0.6: risks 0, 1/2, 1/3, 1/4.
    assert scores["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert scores["confidence"] == pytest.approx(0.75)


def test_risk_coverage_does_not_depend_on_the_order_of_equals():
    confidence = np.array([0.9, 0.5, 0.5, 0.5, 0.5])
    for correct in ([1, 0, 1, 1, 1], [1, 1, 1, 0, 1]):
        coverage, risk = risk_coverage(confidence, np.array(correct))
        assert coverage.tolist() == [0.2, 0.4, 0.6, 0.8, 1.0]
        assert risk.tolist() == pytest.approx([0, 0.25 / 2, 0.5 / 3, 0.75 / 4, 1 / 5])


def test_risk_coverage_orders_perfect_random_and_worst():
    """A perfect confidence puts all errors last; the area is then (1/n) Σ of the tail's risks."""
    rng = np.random.default_rng(0)
    correct = rng.random(2000) < 0.8
    random = area_under_risk_coverage(rng.random(2000), correct)
    perfect = area_under_risk_coverage(correct.astype(float) + rng.random(2000) / 10, correct)
    worst = area_under_risk_coverage(1 - correct.astype(float), correct)
    assert perfect < random < worst
    assert random == pytest.approx(0.2, abs=0.02)
    # r + (1 - r) ln(1 - r) for an error rate r: Geifman et al. 2019, section 2.
    assert perfect == pytest.approx(0.2 + 0.8 * np.log(0.8), abs=0.005)


def test_calibration_error_equals_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.classification")
    import torch

    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.5] * 4, size=400)
    truth = rng.integers(4, size=400)
    expected = functional.multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(truth), num_classes=4, n_bins=15
    )
    correct = probabilities.argmax(axis=1) == truth
    assert expected_calibration_error(probabilities.max(axis=1), correct) == pytest.approx(float(expected), abs=1e-6)


def test_confusion_counts_inputs_by_true_and_chosen_task():
    assert confusion_matrix([0, 1, 1, 1], [0, 0, 1, 1], 2) == [[1, 1], [0, 2]]


def test_length_router_sends_short_to_short_and_long_to_long():
    assert length_router([[5, 6, 7, 8] * 10, [200, 220, 240] * 10], [6, 230, 7]) == [0, 1, 0]


def test_collapse_is_told_in_words_by_hand():
    names, truth = ["a", "b"], [0] * 5 + [1] * 5
    certain = np.eye(2)[truth]
    assert collapse_warnings(certain, truth, names) == []
    taken = collapse_warnings(np.tile([0.999, 0.001], (10, 1)), truth, names)
    assert [text.partition(":")[0] for text in taken[:1]] == ["the adapter of b is nearly dead"]
    assert any("always certain" in text and "right for 50.0 %" in text for text in taken)
    assert not any("takes nearly all" in text for text in taken)  # half of the inputs are its own
    all_of_it = collapse_warnings(np.tile([0.95, 0.03, 0.02], (9, 1)), [0, 1, 2] * 3, ["a", "b", "c"])
    assert any(text.startswith("the adapter of a takes nearly all: it has 95.0 %") for text in all_of_it)
    undecided = collapse_warnings(np.full((10, 2), 0.5), truth, names)
    assert undecided == ["the router hardly chooses: entropy 0.69 of at most 0.69"]


def test_the_interval_of_a_share_is_that_of_the_binomial():
    """70 of 100: about 0.7 ± 1.96 · √(0.7 · 0.3 / 100)."""
    low, high = bootstrap_interval([1.0] * 70 + [0.0] * 30)
    assert low == pytest.approx(0.61, abs=0.015)
    assert high == pytest.approx(0.79, abs=0.015)


def test_every_line_counts_alike_in_sentence_bleu_but_not_in_that_of_the_corpus():
    right, long = "return self . name", " ".join(f"word{number}" for number in range(40))
    assert sentence_bleu([right, "none"], [right, long]) == pytest.approx(50)
    assert bleu([right, "none"], [right, long]) < 5
    assert sentence_bleu(["pass"], ["pass"]) == pytest.approx(100)


def test_the_interval_of_bleu_lies_around_it():
    """All right is 100 in every resample; half of them wrong words spread around the score of the corpus."""
    lines = [f"the {word} sits on the mat over there" for word in ("cat", "dog", "cow", "hen", "fox")] * 4
    assert bleu_interval(lines, lines) == pytest.approx((100.0, 100.0))
    found = [line if number % 2 else "no word of it is right here now" for number, line in enumerate(lines)]
    low, high = bleu_interval(found, lines)
    assert low < bleu(found, lines) < high
    assert high - low > 10


def test_pairs_of_tasks_that_are_confused_are_named_with_what_helps():
    """3 of 100 is worth a warning, 2 of 100 is not. Of two directions the larger share counts, not the number."""
    names = ["reviews", "requests", "news"]
    said = confused_pairs([[292, 8, 0], [7, 13, 0], [3, 0, 97]], names)
    assert [sentence.partition(". ")[0] for sentence in said] == [
        "7 of 20 plain inputs of requests are sent to reviews",
        "3 of 100 plain inputs of news are sent to reviews",
    ]
    assert "tasks.news.router_files" in said[1]
    assert len(confused_pairs([[292, 8, 0], [7, 13, 0], [3, 0, 97]], names, {("reviews", "requests")})) == 1
    assert confused_pairs([[98, 2], [0, 0]], ["a", "b"]) == []


def test_calibration_error_that_is_chance():
    """One bin of n answers with confidence 0.5: E|X/n - 1/2|, by hand 0.25 for n = 2, and 0 at confidence 1."""
    assert chance_calibration_error(np.array([0.5, 0.5]), bins=1, draws=4000) == pytest.approx(0.25, abs=0.01)
    assert chance_calibration_error(np.ones(9)) == 0
    few, many = (chance_calibration_error(np.full(n, 0.8)) for n in (50, 5000))
    assert many < few / 5
