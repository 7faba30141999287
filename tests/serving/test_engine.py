"""The engine: who is let in, who shares a pass, and what becomes of those who gave up."""

import threading
import time

import pytest
from clients import together, wait_until

from dynamo_mtl.config.serving_config import ServingConfig
from dynamo_mtl.serving.engine import Engine
from dynamo_mtl.serving.job import Abandoned, DeadlineExceeded, Overloaded, Unavailable

WRITE = {"text": "The man buys an apple.", "task_hint": "translation"}


@pytest.fixture
def endless(model):
    """A model that writes as long as it may."""
    model.system.model.head("translation").bias.data[model.system.tasks["translation"].vocabulary.end] = -1e4
    return model


@pytest.fixture
def start(model):
    """Start an engine with given settings; it is stopped in the end."""
    engines = []

    def make(**settings):
        passes = []
        engine = Engine(model.predictor, ServingConfig(**settings), lambda *seen: passes.append(seen))
        engines.append(engine)
        engine.start()
        return engine, passes

    yield make
    for engine in engines:
        engine.stop(5)


@pytest.fixture
def gate(model, monkeypatch):
    """Holds every pass until it is set; ``entered`` says that one is held."""
    begin, opened = model.predictor.begin, threading.Event()
    opened.entered = threading.Event()

    def held(questions, decoder):
        opened.entered.set()
        assert opened.wait(10)
        return begin(questions, decoder)

    monkeypatch.setattr(model.predictor, "begin", held)
    return opened


def _question(model, given, **generation):
    return model.reader.question(given, None, None, generation)


def test_inputs_that_wait_share_a_pass_up_to_its_budget(model, start, gate):
    question = _question(model, "A wonderful film.")
    engine, passes = start(token_budget=3 * question.tokens)
    first = engine.submit([question])
    assert gate.entered.wait(5)
    rest = engine.submit([question] * 7)
    gate.set()
    answers = [job.future.result(10) for job in first + rest]
    assert [inputs for inputs, _ in passes] == [1, 3, 3, 1]
    assert len({str(answer.answer.get("label", answer.answer)) for answer in answers}) == 1
    assert (engine.in_flight, engine.queued_tokens) == (0, 0)


def test_others_join_while_an_answer_is_being_written(endless, start, monkeypatch):
    """Continuous batching: what comes later and is shorter is answered first."""
    step = endless.predictor.step

    def slower(decoder):
        time.sleep(0.005)
        return step(decoder)

    monkeypatch.setattr(endless.predictor, "step", slower)
    engine, _ = start()
    long = engine.submit([_question(endless, WRITE, max_new_tokens=120)])[0]
    assert wait_until(lambda: long.pending is not None)
    short = engine.submit([_question(endless, WRITE, max_new_tokens=3)])[0]
    read = engine.submit([_question(endless, {"text": "A film.", "task_hint": "sentiment"})])[0]
    read.future.result(10), short.future.result(10)
    assert not long.future.done()
    long.future.result(20)
    assert long.pending.draft.best().tokens == 120


def test_no_more_is_let_in_than_there_is_room_for(model, start, gate):
    question = _question(model, "A wonderful film.")
    engine, _ = start(max_requests=3, max_queued_tokens=2 * question.tokens)
    engine.submit([question])
    assert gate.entered.wait(5)
    with pytest.raises(Overloaded):
        engine.submit([question] * 3)
    assert engine.in_flight == 1  # all of a request or nothing of it
    engine.submit([question])
    with pytest.raises(Overloaded) as refused:
        engine.submit([question])  # too many tokens
    assert refused.value.retry_after >= 1
    gate.set()
    assert wait_until(lambda: engine.in_flight == 0)
    engine.submit([question])[0].future.result(10)


def test_a_long_input_is_taken_by_an_engine_that_has_nothing_else(model, start):
    question = _question(model, "A wonderful film.")
    engine, _ = start(max_queued_tokens=1, token_budget=1)
    engine.submit([question])[0].future.result(10)


def test_what_nobody_waits_for_is_dropped_before_it_costs_a_pass(model, start, gate):
    question = _question(model, "A wonderful film.")
    engine, passes = start()
    engine.submit([question])
    assert gate.entered.wait(5)
    left, late, kept = engine.submit([question] * 3)
    left.give_up()
    late.deadline = 0.0
    gate.set()
    kept.future.result(10)
    assert isinstance(left.future.exception(5), Abandoned)
    assert isinstance(late.future.exception(5), DeadlineExceeded)
    assert [inputs for inputs, _ in passes] == [1, 1]


def test_what_nobody_waits_for_is_not_written_on(endless, start):
    engine, _ = start()
    left, late, kept = engine.submit([_question(endless, WRITE, max_new_tokens=150, num_beams=2)] * 3)
    assert wait_until(lambda: kept.pending is not None)
    left.give_up()
    late.deadline = 0.0
    assert isinstance(left.future.exception(5), Abandoned)
    assert isinstance(late.future.exception(5), DeadlineExceeded)
    assert left.pending.draft.steps < 150
    answer = kept.future.result(20)
    assert kept.pending.draft.best().tokens == 150
    alone = endless(WRITE, max_new_tokens=150, num_beams=2)
    assert answer.answer["translation_text"] == alone["translation_text"]


def test_a_step_that_fails_fails_nobody_who_can_be_answered_alone(endless, start, monkeypatch):
    expected = endless(WRITE, max_new_tokens=8)["translation_text"]
    step, calls = endless.predictor.step, []

    def failing(decoder):
        calls.append(len(decoder.drafts))
        if len(decoder.drafts) > 1 and len(calls) > 2:
            raise RuntimeError("together they are too many")
        return step(decoder)

    monkeypatch.setattr(endless.predictor, "step", failing)
    engine, _ = start()
    jobs = engine.submit([_question(endless, WRITE, max_new_tokens=8)] * 3)
    assert [job.future.result(10).answer["translation_text"] for job in jobs] == [expected] * 3
    assert calls[:3] == [3, 3, 3]
    assert engine.is_alive


def test_a_pass_that_fails_leaves_nothing_behind_in_the_decoder(endless, start, monkeypatch):
    """The drafts of the failed pass had joined already; those of others go on."""
    begin = endless.predictor.begin
    bad = _question(endless, {"text": "A bad one.", "task_hint": "translation"}, max_new_tokens=100)

    def failing(questions, decoder):
        pending = begin(questions, decoder)
        if any(question is bad for question in questions):
            raise RuntimeError("too late")
        return pending

    monkeypatch.setattr(endless.predictor, "begin", failing)
    engine, _ = start()
    good = engine.submit([_question(endless, WRITE, max_new_tokens=100)])[0]
    assert wait_until(lambda: good.pending is not None)
    with pytest.raises(RuntimeError, match="too late"):
        engine.submit([bad])[0].future.result(10)
    good.future.result(10)
    assert good.pending.draft.best().tokens == 100
    assert engine.submit([_question(endless, WRITE, max_new_tokens=2)])[0].future.result(10)


def test_a_dead_engine_says_so_to_everybody(model, monkeypatch):
    died = threading.Event()
    engine = Engine(model.predictor, ServingConfig(), on_death=died.set)
    monkeypatch.setattr(engine, "_begin", lambda jobs: 1 / 0)
    engine.start()
    job = engine.submit([_question(model, "x")])[0]
    assert isinstance(job.future.exception(5), Unavailable)
    assert died.wait(5)
    assert isinstance(engine.failure, ZeroDivisionError)
    assert not engine.is_alive
    with pytest.raises(Unavailable):
        engine.submit([_question(model, "x")])


def test_a_stopping_engine_finishes_what_it_took_and_takes_nothing_more(endless, start):
    engine, _ = start()
    jobs = engine.submit([_question(endless, WRITE, max_new_tokens=100)] * 4)
    engine.stop(20)
    assert all(job.future.result(0) for job in jobs)
    with pytest.raises(Unavailable):
        engine.submit([jobs[0].question])


def test_many_threads_may_ask_at_once(model, start):
    engine, _ = start()
    question = _question(model, "A wonderful film.")
    found = together(*(lambda: engine.submit([question] * 3) for _ in range(16)))
    assert len([job.future.result(10) for jobs in found for job in jobs]) == 48
    assert engine.in_flight == 0
