"""Metrics of labels, scores, tags and spans against scikit-learn, SciPy and seqeval."""

import numpy as np
import pytest
import torch
from scipy import stats
from seqeval.metrics import f1_score as seqeval_f1
from seqeval.metrics import precision_score as seqeval_precision
from seqeval.metrics import recall_score as seqeval_recall
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss, matthews_corrcoef

from dynamo_mtl.metrics.classification import (
    classification_scores,
    kept_scores,
    matthews_correlation,
    set_interval,
    set_scores,
)
from dynamo_mtl.metrics.entities import entity_scores
from dynamo_mtl.metrics.regression import correlation, ranks, regression_scores, spearman_interval
from dynamo_mtl.metrics.spans import no_answer_scores, span_scores
from dynamo_mtl.model.calibration import NEVER, fit_temperature, least_confidence
from dynamo_mtl.tasks.multi_label import best_threshold
from dynamo_mtl.tasks.regression import level_log_probabilities, ordinal_losses
from dynamo_mtl.tasks.tag_schemes import EntityScheme

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("seed", range(5))
def test_labels_against_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    truth, found = (rng.integers(0, 4, size=60).tolist() for _ in range(2))
    scores = classification_scores(found, truth)
    assert scores["f1"] == pytest.approx(f1_score(truth, found, average="macro", labels=sorted(set(truth))))
    assert scores["accuracy"] == pytest.approx(accuracy_score(truth, found))
    assert scores["mcc"] == pytest.approx(matthews_corrcoef(truth, found))


def test_correlation_of_classes_is_zero_for_a_constant_answer():
    assert matthews_correlation([1, 1, 1], [0, 1, 1]) == 0.0
    assert matthews_correlation([None, 1], [0, 1]) == pytest.approx(matthews_corrcoef([0, 1], [2, 1]))


@pytest.mark.parametrize("seed", range(5))
def test_sets_against_scikit_learn(seed):
    """Also with empty sets on both sides."""
    rng = np.random.default_rng(seed)
    truth, found = ((rng.random((40, 5)) < 0.3).astype(int) for _ in range(2))
    truth[0] = found[0] = 0
    sets = [[set(np.flatnonzero(row).tolist()) for row in table] for table in (found, truth)]
    scores = set_scores(sets[0], sets[1], 5)
    assert scores["micro_f1"] == pytest.approx(f1_score(truth, found, average="micro"))
    assert scores["macro_f1"] == pytest.approx(f1_score(truth, found, average="macro", zero_division=0))
    assert scores["exact_match"] == pytest.approx(accuracy_score(truth, found))
    low, high = set_interval(*sets)
    assert low < scores["micro_f1"] < high


def test_no_answer_is_not_an_empty_set():
    """Fails if None counts as right where nothing is expected."""
    assert set_scores([None, set()], [set(), set()], 2)["exact_match"] == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_scores_against_scipy(seed):
    """With ties, as scores in steps have."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 6, size=50) / 2
    found = np.round(truth + rng.normal(size=50), 1)
    scores = regression_scores(found.tolist(), truth.tolist())
    assert scores["pearson"] == pytest.approx(stats.pearsonr(found, truth).statistic)
    assert scores["spearman"] == pytest.approx(stats.spearmanr(found, truth).statistic)
    assert ranks(found) == pytest.approx(stats.rankdata(found))
    assert scores["mae"] == pytest.approx(np.abs(found - truth).mean())
    low, high = spearman_interval(found.tolist(), truth.tolist())
    assert low < scores["spearman"] < high


def test_scores_that_say_nothing_correlate_zero():
    assert regression_scores([None, None, None], [1.0, 2.0, 4.0])["spearman"] == 0.0
    assert correlation(np.ones(3), np.arange(3.0)) == 0.0


TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@pytest.mark.parametrize("seed", range(6))
def test_entities_against_seqeval(seed):
    """Spans from tags, and F1 over them. Any sequence of tags is read as seqeval's default mode reads it."""
    rng = np.random.default_rng(seed)
    truth, found = ([[TAGS[n] for n in rng.integers(0, 5, size=12)] for _ in range(20)] for _ in range(2))
    scheme, words = EntityScheme(["PER", "LOC"]), [(2 * n, 2 * n + 1) for n in range(12)]
    spans = [[scheme.spans(words, row) for row in rows] for rows in (found, truth)]
    scores = entity_scores(*spans)
    ours = [scores[name] / 100 for name in ("f1", "precision", "recall")]
    assert ours == pytest.approx([f(truth, found) for f in (seqeval_f1, seqeval_precision, seqeval_recall)])


def test_legal_tags_are_read_as_seqeval_reads_them_strictly():
    rows = [["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-LOC"], ["O", "B-PER", "B-PER", "O", "O", "B-LOC"]]
    other = [["B-PER", "O", "O", "B-LOC", "B-LOC", "I-LOC"], ["O", "B-PER", "I-PER", "O", "O", "B-LOC"]]
    scheme, words = EntityScheme(["PER", "LOC"]), [(2 * n, 2 * n + 1) for n in range(6)]
    scores = entity_scores(*([scheme.spans(words, row) for row in table] for table in (other, rows)))
    assert scores["f1"] / 100 == pytest.approx(seqeval_f1(rows, other, mode="strict", scheme=IOB2))


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        (["I-PER", "I-PER", "O", "I-LOC", "I-PER"], [(0, 3, "PER"), (6, 7, "LOC"), (8, 9, "PER")]),  # IOB1
        (["B-PER", "E-PER", "S-LOC", "S-LOC", "O"], [(0, 3, "PER"), (4, 5, "LOC"), (6, 7, "LOC")]),  # BIOES
        (["B-PER", "L-PER", "U-LOC", "U-LOC", "O"], [(0, 3, "PER"), (4, 5, "LOC"), (6, 7, "LOC")]),  # BILOU
    ],
)
def test_other_schemes_of_tags(tags, spans):
    words = [(2 * n, 2 * n + 1) for n in range(5)]
    assert EntityScheme(["PER", "LOC"]).spans(words, tags) == spans


def test_questions_without_an_answer_by_hand():
    """Right: the first answer and the first silence. Wrong: an answer where there is none, a silence where there is."""
    predictions = [("Rome", 0, 4), ("", 0, 0), ("Oslo", 0, 4), ("", 0, 0)]
    references = [[("Rome", 0)], [], [], [("Bern", 0)]]
    assert span_scores(predictions, references)["f1"] == 50.0
    assert span_scores(predictions, references)["exact_match"] == 50.0
    assert no_answer_scores(predictions, references) == {"has_answer_f1": 50.0, "no_answer_f1": 50.0}
    assert no_answer_scores([None], [[]])["no_answer_f1"] == 0.0


def test_what_is_kept_and_how_much_of_it_is_right():
    assert kept_scores(["a", None, "b", None], ["a", "a", "a", "a"]) == {"coverage": 0.5, "kept_accuracy": 0.5}


def test_the_temperature_is_the_one_of_the_lowest_loss():
    """Logits three times too large: the temperature is found, and no other one has a lower loss by scikit-learn."""
    torch.manual_seed(0)
    logits = torch.randn(4000, 4)
    truth = torch.distributions.Categorical(logits=logits).sample()
    found = fit_temperature(3 * logits, truth)
    assert found == pytest.approx(3.0, rel=0.1)

    def loss(temperature):
        return log_loss(truth.numpy(), torch.softmax(3 * logits.double() / temperature, dim=1).numpy())

    assert loss(found) <= min(loss(found * 0.98), loss(found * 1.02))


def test_outcomes_that_cannot_be_do_not_change_the_temperature():
    torch.manual_seed(0)
    logits = torch.randn(500, 3)
    truth = torch.distributions.Categorical(logits=logits).sample()
    padded = torch.cat([2 * logits, torch.full((500, 2), float("-inf"))], dim=1)
    assert fit_temperature(padded, truth) == pytest.approx(fit_temperature(2 * logits, truth))


def test_the_lowest_confidence_that_reaches_a_precision():
    """By hand: the first three are right, of the first five four are; equal confidences are taken together."""
    confidence = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.6, 0.5])
    right = torch.tensor([True, True, True, True, False, False])
    assert least_confidence(confidence, right, 0.9) == pytest.approx(0.7)
    assert least_confidence(confidence, right, 0.8) == pytest.approx(0.6)
    assert least_confidence(confidence, right, 0.5) == pytest.approx(0.5)
    assert least_confidence(confidence, ~right, 0.9) == NEVER


def test_the_best_threshold_by_trying_all():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        shares = np.round(rng.random(40), 1)
        has = rng.random(40) < shares
        found = best_threshold(torch.tensor(shares), torch.tensor(has))
        best = max(f1_score(has, shares >= limit, zero_division=0) for limit in np.arange(0, 1.1, 0.05))
        assert f1_score(has, shares >= found) == pytest.approx(best)
    assert best_threshold(torch.tensor([0.4, 0.2]), torch.tensor([False, False])) == 0.5


def test_levels_by_hand():
    """The chain rule with two thresholds: P(0) = 1 - a, P(1) = a (1 - b), P(2) = a b."""
    outputs = torch.tensor([[0.4, -1.0]])
    a, b = torch.sigmoid(outputs)[0].tolist()
    shares = level_log_probabilities(outputs).exp()[0].tolist()
    assert shares == pytest.approx([1 - a, a * (1 - b), a * b])
    assert sum(shares) == pytest.approx(1.0)
    losses = [float(ordinal_losses(outputs, torch.tensor([level]))) for level in range(3)]
    expected = [-np.log(1 - a) / 2, -(np.log(a) + np.log(1 - b)) / 2, -(np.log(a) + np.log(b)) / 2]
    assert losses == pytest.approx(expected)


def test_brier_of_two_outcomes_is_twice_scikit_learns():
    from dynamo_mtl.metrics.routing import brier_score

    shares = RNG.random(50)
    truth = (RNG.random(50) < shares).astype(int)
    ours = brier_score(np.stack([1 - shares, shares], axis=1), truth.tolist())
    assert ours == pytest.approx(2 * brier_score_loss(truth, shares))
