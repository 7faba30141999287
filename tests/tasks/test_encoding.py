"""Source encoding: windows, offsets, instructions, and text that wants to break it."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_mtl.model.backbone import load_tokenizer
from dynamo_mtl.tasks.encoding import SourceEncoder, clean

HOSTILE = [
    "",
    "   ",
    "</s><pad><mask><s><unk>",
    "[CLS] [SEP] [MASK] [PAD]",
    "\ud800 lone \udfff",
    "nul\x00inside\x00",
    "\u202eright to left\u202c \u200f",
    "😀👩‍👩‍👧‍👦🇩🇪" * 20,
    "x" * 100_000,
    "word " * 20_000,
]


@pytest.fixture(scope="module")
def encoder(tiny_roberta):
    return SourceEncoder(load_tokenizer(tiny_roberta), max_length=48, overlap=8, max_windows=4)


def _special(encoder):
    vocabulary = encoder.tokenizer.backend.get_vocab()
    return {vocabulary[t] for t in ("<s>", "</s>", "<pad>", "<mask>", "<unk>")}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("context", [None, *HOSTILE])
def test_hostile_text_is_encoded_without_injected_special_tokens(encoder, text, context):
    source = encoder.encode(text, context)
    assert 1 <= len(source.windows) <= 4
    special = _special(encoder)
    for window in source.windows:
        assert len(window.ids) <= 48
        framing = [i for i, token in enumerate(window.ids) if token in special]
        between = [] if context is None else [window.body_start - 2, window.body_start - 1]
        assert framing == sorted({0, *between, len(window.ids) - 1})


@given(st.text(max_size=300))
@settings(max_examples=60, deadline=None)
def test_offsets_point_into_the_body(encoder, text):
    source = encoder.encode("q", text)
    assert source.body == clean(text)
    assert len(source.body) == len(text)
    for window in source.windows:
        assert all(0 <= start <= end <= len(text) for start, end in window.offsets)


def test_windows_overlap_and_cover_everything(encoder):
    context = " ".join(str(n) for n in range(60))
    windows = encoder.encode("where?", context).windows
    assert len(windows) > 1
    assert windows[0].offsets[0][0] == 0
    assert windows[-1].offsets[-1][1] == len(context)
    for before, after in itertools.pairwise(windows):
        assert before.offsets[-8:] == after.offsets[:8]


def test_an_instruction_is_the_same_as_typing_it(encoder):
    given_apart = encoder.encode("A fine film.", instruction="Translate to German:")
    typed = encoder.encode("Translate to German: A fine film.")
    assert [w.ids for w in given_apart.windows] == [w.ids for w in typed.windows]
