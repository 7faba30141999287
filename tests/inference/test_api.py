"""``DynamoInference``: shapes of answers, any mix of inputs, settings of a call, streaming, threads."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import answer_by_text, save_system

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.inference.api import DynamoInference

SHAPES = {
    "sentiment": {"label", "score", "probabilities"},
    "qa": {"answer", "score", "start", "end"},
    "summarization": {"summary_text", "score"},
    "code_generation": {"generated_text", "score"},
    "translation": {"translation_text", "score"},
}
MIXED = [
    {"text": "A wonderful film.", "task_hint": "sentiment"},
    {"question": "Who sang?", "context": "Ada sang. Tom slept.", "task_hint": "qa"},
    {"text": "People stopped. A fire closed the harbour.", "task_hint": "summarization"},
    {"text": "call the function f with x", "task_hint": "code_generation"},
    {"text": "The man buys an apple.", "task_hint": "translation", "instruction": "Translate:"},
    {"text": "A text of no task.", "context": "It stands here."},
]


@pytest.fixture
def model(system, session_config, tmp_path):
    """The small system, untrained, with heads whose answers differ from text to text."""
    answer_by_text(system)
    with torch.no_grad():
        for name in ("summarization", "code_generation", "translation"):
            vocabulary = system.tasks[name].vocabulary
            for token in range(len(system.model.head(name).bias)):
                if "\ufffd" in vocabulary.decode([token]):  # a part of a character
                    system.model.head(name).bias[token] -= 20
    return DynamoInference(save_system(system, tmp_path / "model"), device="cpu")


def test_answers_have_the_shapes_that_people_know_with_routing_beside_them(model):
    answers = model(MIXED)
    for given, answer in zip(MIXED[:5], answers, strict=False):
        assert answer["task"] == given["task_hint"]
        assert answer.keys() == SHAPES[answer["task"]] | {"task", "routing"}
    free = model.predict(**MIXED[5], return_routing_info=True)
    assert answers[5]["routing"]["rejected"] is free["routing_info"]["rejected"]
    assert answers[5]["routing"]["probabilities"] == pytest.approx(free["routing_info"]["probabilities"], abs=1e-5)
    assert answers[5]["task"] == free["routing_info"]["predicted_task"]
    assert list(answers[5]["routing"]["probabilities"]) == model.task_names


def test_one_input_gives_one_answer_and_an_iterator_is_read_batch_by_batch(model):
    assert model("A wonderful film.", task_hint="sentiment")["label"] in ("negative", "positive")
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield f"Text {number}."

    answers = model(endless(), task_hint="sentiment", batch_size=3)
    assert read == []
    first = [next(answers) for _ in range(4)]
    assert read == [0, 1, 2, 3, 4, 5]
    listed = model([f"Text {n}." for n in range(4)], task_hint="sentiment")
    assert [a["score"] for a in first] == pytest.approx([a["score"] for a in listed], abs=1e-5)


def test_settings_of_a_call_hold_for_that_call(model):
    text = "The man buys an apple."
    short = model(text, task_hint="translation", max_new_tokens=1)["translation_text"]
    long = model(text, task_hint="translation")["translation_text"]
    assert len(short) < len(long)
    assert model.predict(text, task_hint="translation", max_new_tokens=1)["translation"]["translation_text"] == short
    assert model(text, task_hint="translation", no_repeat_ngram_size=1)["translation_text"] != long
    assert model(text, task_hint="translation")["translation_text"] == long
    one, all_five = (model.predict(text, context=text, top_k=k, return_routing_info=True) for k in (1, 5))
    assert one["routing_info"] == all_five["routing_info"]
    task = one["routing_info"]["predicted_task"]
    assert one[task]["score"] != pytest.approx(all_five[task]["score"], abs=1e-7)


def test_pieces_of_a_stream_make_up_the_answer(model):
    for hint, key in (("translation", "translation_text"), ("code_generation", "generated_text")):
        pieces = list(model.stream("call the function f with 'ä x'", task_hint=hint))
        assert len(pieces) > 2
        assert "".join(pieces) == model("call the function f with 'ä x'", task_hint=hint)[key]
    with pytest.raises(ConfigError, match="task 'sentiment' writes no text to stream; those that do: summarization"):
        model.stream("A film.", task_hint="sentiment")
    with pytest.raises(ConfigError, match="stream with num_beams=1"):
        model.stream("A film.", task_hint="translation", num_beams=2)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("x", {"task_hint": "sentimental"}, "no task 'sentimental'; did you mean 'sentiment'"),
        ({"text": "x", "task_hint": "q"}, {}, "no task 'q'"),
        ({"text": "x", "contxt": "y"}, {}, "no key 'contxt'; did you mean 'context'"),
        ({"text": 3}, {}, "text should be a text, found int"),
        ({"context": "x"}, {}, "expected one of text and question, found context"),
        ({"text": "x", "question": "y"}, {}, "expected one of text and question, found text, question"),
        (3, {}, "an input should be a text or a mapping, or many of them; found int"),
        ("x", {"num_beam": 2}, "generation: unknown key 'num_beam'; did you mean 'num_beams'"),
        ("x", {"num_beams": 0}, "generation: num_beams"),
        ("x", {"top_k": 6}, "top_k: found 6; use a whole number from 1 to 5"),
    ],
)
def test_what_cannot_be_answered_is_said(model, given, options, message):
    with pytest.raises(ConfigError) as error:
        model(given, **options)
    assert message in str(error.value)


def test_threads_get_the_answers_of_one(model, monkeypatch):
    """Fails if two passes run at once: they would touch the same packed adapters."""
    inside, most, run = [], [], model.system.model.encoder.run

    def watched(*arguments):
        inside.append(None)
        most.append(len(inside))
        time.sleep(0.001)
        try:
            return run(*arguments)
        finally:
            inside.pop()

    monkeypatch.setattr(model.system.model.encoder, "run", watched)
    inputs = [{**MIXED[number % 5], "instruction": f"Number {number}:"} for number in range(40)]
    alone = [model(one) for one in inputs]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(model, inputs))
    assert set(most) == {1}
    for one, other in zip(alone, together, strict=True):
        assert one["task"] == other["task"]
        assert one["routing"]["probabilities"] == pytest.approx(other["routing"]["probabilities"], abs=1e-6)
        for key in SHAPES[one["task"]]:
            assert other[key] == (pytest.approx(one[key], abs=1e-6) if isinstance(one[key], float) else one[key])
