"""Plans of attention: padded rectangles and variable-length stretches against a mask over all tokens."""

import pytest
import torch
from tiny import nearly

from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.model.attention import take_rows
from dynamo_mtl.model.batch import Target, Window, build_batch
from dynamo_mtl.model.dynamo import DynamoModel
from dynamo_mtl.model.padded_plan import Layout, round_up

HEADS, WIDTH = 2, 8
SOURCES = [5, 9, 30, 12, 31, 2]
TARGETS = {1: 4, 4: 2, 0: 1}


def _batch(variable_length):
    windows = [Window([7] * length, row, deep=row != 3) for row, length in enumerate(SOURCES)]
    targets = [Target(row, "a", [8] * length) for row, length in TARGETS.items()]
    return build_batch(windows, targets, 0, variable_length)


def _masked(query, others, sequences, orders):
    """Every query over every key, where the sequence is the same and the key's order is not higher."""
    (own, seen), (asked, given) = sequences, orders
    allowed = (own[:, None] == seen[None]) & (given[None] <= asked[:, None])
    rows = query.view(-1, HEADS, WIDTH).transpose(0, 1)
    keys, values = others.view(-1, 2, HEADS, WIDTH).permute(1, 2, 0, 3)
    scores = (rows @ keys.transpose(1, 2) * WIDTH**-0.5).masked_fill(~allowed, float("-inf"))
    return (scores.softmax(-1) @ values).transpose(0, 1).flatten(1)


def _sequences_and_orders(deep_only):
    rows = [row for row in range(len(SOURCES)) if row != 3 or not deep_only]
    sequences = [row for row in rows for _ in range(SOURCES[row])]
    orders = [0] * len(sequences)
    for row, length in TARGETS.items():
        sequences += [row] * length
        orders += range(1, length + 1)
    return torch.tensor(sequences), torch.tensor(orders)


def _with_fillers(rows, count, real):
    """A run of ``count`` rows: ``rows`` at the places ``real``, among padding that must not matter."""
    return torch.full((count, rows.shape[1]), 50.0).index_copy(0, real, rows)


@pytest.mark.parametrize("is_sorted", [False, True])
@pytest.mark.parametrize("variable_length", [False, True])
def test_plans_and_their_gradients_equal_a_mask_over_all_tokens(variable_length, is_sorted):
    """Fails if padding gets a gradient, a target sees what follows it, or a moved token is not found."""
    torch.manual_seed(0)
    batch = _batch(variable_length)
    sequences, orders = _sequences_and_orders(deep_only=True)
    joint = torch.randn(len(sequences), 3 * HEADS * WIDTH, requires_grad=True)
    out = torch.randn(len(sequences), HEADS * WIDTH)
    width = HEADS * WIDTH
    count, (first, last) = len(batch.top_examples), batch.target_slices["a"]
    real = torch.cat([torch.arange(int(batch.top_lengths.sum())), torch.arange(first, last)])
    assert (count == len(joint)) == variable_length
    plan, order, place = batch.top_plan, torch.arange(count), torch.arange(count)
    if is_sorted:
        order = torch.randperm(count)
        place = order.argsort()
        plan = plan.reordered(order, place)
    expected = _masked(joint[:, :width], joint[:, width:], (sequences, sequences), (orders, orders))
    found = plan.attend(_with_fillers(joint, count, real)[order], HEADS)[place][real]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    theirs, ours = (torch.autograd.grad((states * out).sum(), joint)[0] for states in (expected, found))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variable_length", [False, True])
def test_targets_see_their_source_and_their_own_past(variable_length):
    """Keys of sequences without a target have no place in the plan, and no gradient."""
    torch.manual_seed(0)
    batch = _batch(variable_length)
    sequences, orders = _sequences_and_orders(deep_only=False)
    sources = sum(SOURCES)
    query = torch.randn(sum(TARGETS.values()), HEADS * WIDTH)
    others = torch.randn(len(sequences), 2 * HEADS * WIDTH, requires_grad=True)
    expected = _masked(query, others, (sequences[sources:], sequences), (orders[sources:], orders))
    targets, filled = len(query), len(batch.target_positions)
    real = torch.cat([torch.arange(sources), len(batch.ids) + torch.arange(targets)])
    run = _with_fillers(others, len(batch.ids) + filled, real)
    found = batch.target_plan.attend_to(_with_fillers(query, filled, torch.arange(targets)), run, HEADS)[:targets]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    theirs, ours = (torch.autograd.grad((states**2).sum(), others)[0] for states in (expected, found))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert not ours[sum(SOURCES[:2]) : sum(SOURCES[:4])].any()
    assert ours[: SOURCES[0]].any()


def test_a_layout_puts_heads_into_rectangles_and_back():
    """Tokens 2 and 0 in one rectangle of two rows, token 1 in another; two heads of one number, keys beside values."""
    order = torch.tensor([2, 0, 1])
    geometry = torch.tensor([[0, 0, 2], [0, 1, 0], [0, 0, 0], [1, 1, 1], [2, 2, 1]])
    layout = Layout(order, order, torch.tensor([1, 2, 0]), geometry, ((2, 1), (1, 1)), is_plain=False)
    packed = torch.arange(12.0).view(3, 4).requires_grad_()  # a token: key of head 0, of head 1, value of head 0, of 1
    first, second = layout.pad(packed, 2, 2)
    assert first.flatten(2).tolist() == [[[8, 9], [0, 1]], [[10, 11], [2, 3]]]
    assert second.flatten(2).tolist() == [[[4, 5]], [[6, 7]]]
    assert layout.unpad([first[0], second[0]], 2).tolist() == [[0, 1], [4, 5], [8, 9]]
    (gradient,) = torch.autograd.grad(first[1].sum() + 2 * second[0].sum(), packed)
    assert gradient.tolist() == [[0, 0, 1, 1], [2, 2, 0, 0], [0, 0, 1, 1]]


def test_rows_that_are_not_taken_have_no_gradient():
    rows = torch.ones(3, 1, requires_grad=True)
    taken = take_rows(rows, torch.tensor([2, 2]), lambda: torch.tensor([-1, -1, 0]))
    (gradient,) = torch.autograd.grad((taken * torch.tensor([[5.0], [7.0]])).sum(), rows)
    assert gradient.flatten().tolist() == [0, 0, 5]


def test_answers_do_not_depend_on_the_kernel(system, monkeypatch):
    """The whole prediction with plans for a GPU's kernels, here through their stand-in."""
    texts = ["a fine film", "Say hello.", "The cat sat on the mat while it rained for hours."]
    inputs = [TextInput(text, "Mary lives in Rome." if n == 1 else None) for n, text in enumerate(texts * 2)]
    tasks = ["sentiment", "qa", "summarization", "translation", "qa", "code_generation"]
    padded = Predictor(system).predict(inputs, tasks)
    monkeypatch.setattr(DynamoModel, "variable_length", True)
    for ours, theirs in zip(Predictor(system).predict(inputs, tasks), padded, strict=True):
        assert ours.answer == nearly(theirs.answer, 1e-5)


@pytest.mark.parametrize("is_sorted", [False, True])
def test_sequences_of_one_length_are_not_moved(is_sorted):
    torch.manual_seed(0)
    rows, length, width = 4, 5, HEADS * WIDTH
    plan = build_batch([Window([7] * length, row) for row in range(rows)], [], 0).trunk_plan
    assert plan.query_layout.is_plain
    sequences, orders = torch.arange(rows).repeat_interleave(length), torch.zeros(rows * length, dtype=torch.long)
    joint = torch.randn(rows * length, 3 * width)
    order = torch.arange(rows * length).view(rows, length)[[2, 0, 3, 1] if is_sorted else [0, 1, 2, 3]].flatten()
    place = order.argsort()
    expected = _masked(joint[:, :width], joint[:, width:], (sequences, sequences), (orders, orders))
    found = plan.reordered(order, place).attend(joint[order], HEADS)[place]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_sizes_are_rounded_to_few_numbers():
    """16 from a power of two to the next, and what is added is less than a sixteenth, or than 16."""
    assert [round_up(n) for n in (0, 1, 16, 17, 500, 512, 513, 1000, 2938)] == [
        0,
        16,
        16,
        32,
        512,
        512,
        544,
        1024,
        2944,
    ]
    assert len({round_up(n) for n in range(4097, 8193)}) == 16
    assert all(n <= round_up(n) < n + max(16, n / 16 + 1) for n in range(1, 9000))
