"""The order of training: a pure function of seed, epoch and step."""

from collections import Counter

import numpy as np
import pytest

from dynamo_mtl.data.mixture import MixedOrder, SingleOrder, competence, sampling_probabilities
from dynamo_mtl.out_of_memory import split_by_tokens


def test_sampling_is_size_tempered():
    np.testing.assert_allclose(sampling_probabilities([100, 400], 0.5), [1 / 3, 2 / 3])
    np.testing.assert_allclose(sampling_probabilities([100, 400], 0), [0.5, 0.5])
    np.testing.assert_allclose(sampling_probabilities([100, 400], 1), [0.2, 0.8])


def test_an_epoch_visits_every_row_once_and_epochs_differ():
    order = SingleOrder(23, 5, seed=3)
    epochs = [[row for step in range(e * 5, e * 5 + 5) for row in order.batch(step)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(23))
    assert epochs[0] != epochs[1]


def test_any_step_can_be_drawn_without_the_ones_before():
    order = MixedOrder((40, 7, 90), 6, 20, 0.5, seed=1)
    forwards = [order.batch(step) for step in range(40)]
    backwards = [MixedOrder((40, 7, 90), 6, 20, 0.5, seed=1).batch(step) for step in reversed(range(40))]
    assert forwards == backwards[::-1]
    assert forwards != [MixedOrder((40, 7, 90), 6, 20, 0.5, seed=2).batch(step) for step in range(40)]


def test_a_mixture_repeats_no_row_before_all_were_seen():
    order = MixedOrder((9, 5), 4, 30, 0.0, seed=0)
    seen = {0: [], 1: []}
    for step in range(30):
        for member, row in order.batch(step):
            seen[member].append(row)
    for size, rows in ((9, seen[0]), (5, seen[1])):
        whole = len(rows) // size
        assert whole >= 2
        for turn in range(whole):
            assert sorted(rows[turn * size : (turn + 1) * size]) == list(range(size))


def test_a_curriculum_draws_from_the_easiest_share():
    order = MixedOrder((100, 10), 8, 50, 0.5, seed=0)
    drawn = [pair for step in range(50) for pair in order.batch(step, share=0.3)]
    assert max(rank for member, rank in drawn if member == 0) == 29
    assert max(rank for member, rank in drawn if member == 1) == 2
    assert Counter(member for member, _ in drawn)[0] > 200


def test_competence_by_hand():
    assert competence(0, 0.5) == 0.5
    assert competence(1, 0.5) == 1.0
    assert competence(0.5, 0.1) == pytest.approx((0.5 * 0.99 + 0.01) ** 0.5)
    assert competence(2.0, 0.1) == 1.0


def test_micro_batches_fit_the_budget_and_hold_similar_lengths():
    lengths = [10, 300, 20, 280, 15, 900]
    groups = split_by_tokens(lengths, 590)
    assert groups == [[5], [1, 3], [2, 4, 0]]
    assert sorted(i for g in groups for i in g) == list(range(6))
