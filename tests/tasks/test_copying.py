"""Copying words of the source: what may be copied, how targets are cut, and how the pointer scores."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.model.backbone import load_tokenizer
from dynamo_mtl.model.heads import Copyable, LanguageModelHead, Pointer
from dynamo_mtl.system import choose_vocabulary
from dynamo_mtl.tasks.copying import source_words, split_copied
from dynamo_mtl.tasks.encoding import SourceEncoder
from dynamo_mtl.tasks.registry import task_types
from dynamo_mtl.tasks.task import Example
from dynamo_mtl.tasks.vocabulary import train_vocabulary

TASK = "code_generation"


@pytest.fixture(scope="module")
def tokenizer(tiny_roberta):
    return load_tokenizer(tiny_roberta)


def _words(tokenizer, text, length=64, **source):
    encoded = SourceEncoder(tokenizer, length, 8, 4).encode(text, **source)
    return encoded, source_words(encoded)


def test_words_and_quotations_of_a_source_are_found_with_their_first_tokens(tokenizer):
    text = "set Foo_bar to 'a Foo_bar', no more"
    encoded, words = _words(tokenizer, text)
    assert set(words.numbers) == {"set", "Foo_bar", "to", "'a Foo_bar'", "a", "no", "more"}
    assert sorted(words.numbers.values()) == list(range(7)) == list(words.numbers.values())
    window = encoded.windows[0]
    starts = {number: [] for number in words.numbers.values()}
    for place, number in words.occurrences:
        first = window.offsets[place - window.body_start][0]
        starts[number].append(first + (text[first] == " "))
    assert sorted(starts[words.numbers["Foo_bar"]]) == [4, 18]
    assert starts[words.numbers["'a Foo_bar'"]] == [15]
    for word, number in words.numbers.items():
        spans = [window.offsets[window.ids.index(words.pieces[number]) - window.body_start]]
        assert text[slice(*spans[0])].strip() in word


def test_what_is_not_whole_in_the_first_window_is_not_copied(tokenizer):
    text = "one two three four five six seven eight nine ten"
    _, all_words = _words(tokenizer, text)
    encoded, words = _words(tokenizer, text, length=16)
    end = encoded.windows[0].offsets[-1][1]
    assert len(encoded.windows) > 1
    assert list(words.numbers) == [w for w in all_words.numbers if text.index(w) + len(w) <= end]


def test_with_a_context_its_words_are_copied_and_with_an_instruction_that_ones_too(tokenizer):
    encoded, words = _words(tokenizer, "Which", context="the answer")
    assert set(words.numbers) == {"the", "answer"}
    assert min(place for place, _ in words.occurrences) == encoded.windows[0].body_start
    _, instructed = _words(tokenizer, "the answer", instruction="Say:")
    assert set(instructed.numbers) == {"Say", "the", "answer"}


def test_a_source_without_words_has_nothing_to_copy(tokenizer):
    for text in ("", "...", " \n"):
        _, words = _words(tokenizer, text)
        assert (words.numbers, words.occurrences, words.pieces) == ({}, [], [])


def test_a_target_is_cut_at_the_longest_words_of_the_source():
    words = {"x": 0, "'a x'": 1, "foo": 2}
    assert list(split_copied("foo = 'a x'", words)) == [2, " = ", 1]
    # A quotation that is not in the source, with a word in it that is; part of a word is no word.
    assert list(split_copied("f('b x', xfoo)", words)) == ["f('b ", 0, "', xfoo)"]
    assert list(split_copied(r"g(b'it\'s')", {r"'it\'s'": 0, "s": 1})) == ["g(b", 0, ")"]
    assert list(split_copied("", words)) == []
    assert list(split_copied("nothing", words)) == ["nothing"]


VOCABULARY = train_vocabulary(["def f ( x ) :", " = 'a' . \n    "] * 5, 320, across_words=True)


@given(st.text(alphabet="ab_'\"\n ü.😀", max_size=40), st.text(alphabet="ab_'\"\n ü.😀", max_size=40))
@settings(max_examples=300, deadline=None)
def test_every_target_comes_back_whatever_its_source(source, target):
    """Fails if a stretch between two copied words is lost or spelled with a blank too many."""
    words = {unit: number for number, unit in enumerate(dict.fromkeys([*source.split(), "a", "'b'"]))}
    ids = VOCABULARY.encode(target, 1000, words)
    assert VOCABULARY.decode(ids, words) == target


def test_tokens_between_words_hold_several_words_of_a_line_but_not_of_two():
    vocabulary = train_vocabulary([" ) : \n    return ( "] * 50, 300, across_words=True)
    assert len(vocabulary.encode(" ) : ", 99)) == 1
    assert len(vocabulary.encode(" ) : \n    return ( ", 99)) == 3
    plain = train_vocabulary([" ) : \n    return ( "] * 50, 300)
    assert len(plain.encode(" ) : ", 99)) > 1


def test_the_pointer_sums_over_occurrences_of_a_word():
    """By hand: scores 1, 2 and 3 at three places, the first and the last of them the same word."""
    pointer = Pointer(4)
    with torch.no_grad():
        pointer.query.weight.zero_()
        pointer.query.bias.zero_()
        pointer.query.bias[0] = Pointer.WIDTH**0.5
    keys = torch.zeros(2, 4, Pointer.WIDTH)
    keys[0, :, 0] = torch.tensor([1.0, 2.0, 3.0, 9.0])
    source = Copyable(keys, torch.tensor([[0, 1, 0, -1], [-1, -1, -1, -1]]), torch.zeros(2, 3, dtype=torch.long))
    scores = pointer(torch.randn(2, 4), source)
    expected = torch.tensor([[torch.logaddexp(torch.tensor(1.0), torch.tensor(3.0)), 2.0, -torch.inf]])
    torch.testing.assert_close(scores[:1], expected)
    assert scores[1].tolist() == [-torch.inf] * 3


def test_no_place_gives_no_gradient_that_is_not_a_number():
    pointer = Pointer(4)
    source = Copyable(
        torch.randn(2, 3, Pointer.WIDTH), torch.tensor([[0, -1, 1], [-1, -1, -1]]), torch.zeros(2, 2).long()
    )
    hidden = torch.randn(2, 4, requires_grad=True)
    scores = pointer(hidden, source)
    torch.logsumexp(torch.cat([hidden, scores], dim=1), dim=1).sum().backward()
    assert hidden.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in pointer.parameters())


def test_a_copied_word_is_fed_as_its_token_of_the_backbone():
    backbone = torch.nn.Embedding(10, 4).requires_grad_(False)
    head = LanguageModelHead(4, 5, backbone, 1e-5, copies=True)
    with torch.no_grad():
        head.pointer.fed.copy_(torch.arange(4.0))
    fed = head.embed(torch.tensor([2, 5, 6]), torch.tensor([0, 7, 3]))
    expected = torch.stack([head.embeddings[2], *(backbone.weight[[7, 3]] + torch.arange(4.0))])
    assert torch.equal(fed, expected)


def test_label_smoothing_spreads_over_the_vocabulary_alone(system):
    """Against the formula of torch on logits without words, and finite where rows have fewer words than others."""
    task = system.tasks[TASK]
    examples = [Example("sum of a and b", None, "return a + b"), Example("...", None, "pass")]
    packed = system.collate([system.encode(example, TASK) for example in examples])
    view = packed.views[0]
    head = system.model.head(TASK).train()
    hidden = torch.randn(len(packed.batch.top_examples), 32)
    plain = task.losses(head, hidden, view)
    task.config = task.config.model_copy(update={"label_smoothing": 0.2})
    smooth = task.losses(head, hidden, view)
    logits = head(hidden[slice(*view.target)], task.copyable(head, hidden, view).select(view.label_rows))
    spread = -torch.log_softmax(logits, dim=1)[:, : head.vocabulary_size].mean(dim=1)
    torch.testing.assert_close(smooth, 0.8 * plain + 0.2 * spread)
    assert smooth.isfinite().all()


def test_answers_hold_words_that_no_vocabulary_has(system):
    """A pointer that is sure: the answer is the source's word, capitals and all, in a batch of several tasks."""
    head = system.model.head(TASK)
    with torch.no_grad():
        head.bias[:] = -50.0
        head.bias[system.tasks[TASK].vocabulary.end] = -20.0
        head.pointer.query.weight.zero_()
        head.pointer.key.weight.zero_()
    texts = ["fooBAR_Baz9", "Qux", "..."]
    predicted = Predictor(system).predict(
        [TextInput(text) for text in [*texts, "fine"]], [TASK, TASK, TASK, "translation"]
    )
    limit = system.tasks[TASK].config.generation.max_new_tokens
    assert [p.answer.get("generated_text") for p in predicted[:3]] == ["fooBAR_Baz9" * limit, "Qux" * limit, ""]


def test_copying_needs_a_vocabulary_that_keeps_blanks(tokenizer):
    from tokenizers import Tokenizer, models

    words = dataclasses.replace(tokenizer, backend=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    config = task_types()[TASK].Config(type=TASK, target_vocabulary="backbone", copy_words=True)
    task = task_types()[TASK](TASK, config)
    with pytest.raises(ConfigError, match=r"tasks.code_generation.copy_words: found true with the vocabulary of the"):
        choose_vocabulary(task, words, False, lambda _: [])
    task.config = config.model_copy(update={"copy_words": None})
    choose_vocabulary(task, words, False, lambda _: [])
    assert not task.copies_words
    choose_vocabulary(task, tokenizer, True, lambda _: [])
    assert task.copies_words
