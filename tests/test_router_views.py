import numpy as np
import pytest

from dynamo_mtl.data.data_config import VIEWS as NAMES
from dynamo_mtl.router_inputs import InputKind, RouterInputs
from dynamo_mtl.router_views import VIEWS, joined_tokens, split_tokens, view_of
from dynamo_mtl.tasks.task import Example

REVIEW = Example("It's a warm, funny film. Nobody's bored! See it twice.", None, "")
QUESTION = Example("When does it open?", "The pool opens at nine. It closes at six. Children pay half.", "")


def another():
    return Example("The other text.", None, "")


def changed(name, example=REVIEW, seed=0):
    return VIEWS[name](example, np.random.default_rng(seed), another)


def test_every_view_has_a_name_in_the_configuration():
    assert list(VIEWS) == list(NAMES)


def test_tokenised_text_and_back():
    raw = "She said \"it's (very) good,\" didn't she?"
    tokenised = "She said \" it 's ( very ) good , \" did n't she ?"
    assert split_tokens(raw) == tokenised
    assert joined_tokens(tokenised) == raw
    assert joined_tokens("`` a -lrb- b -rrb- '' .") == '"a (b)".'
    assert changed("spelled", Example(tokenised, None, "")).text == raw
    assert changed("spelled", Example(raw, None, "")).text == tokenised


def test_case_is_taken_away_or_put_where_it_belongs():
    found = {changed("cased", Example("i think. it is bad", None, ""), seed).text for seed in range(30)}
    assert found == {"i think. it is bad", "I THINK. IT IS BAD", "I think. It is bad"}


def test_punctuation_goes_or_another_ends_the_text():
    found = {changed("punctuated", seed=seed).text for seed in range(60)}
    assert "It's a warm funny film Nobody's bored See it twice" in found
    assert REVIEW.text.removesuffix(".") + "!" in found
    questions = {changed("punctuated", QUESTION, seed).text for seed in range(60)}
    assert questions == {"When does it open?", "When does it open"}


def test_typing_errors_keep_the_words_and_their_number():
    found = changed("mistyped").text.split()
    differ = [(one, other) for one, other in zip(found, REVIEW.text.split(), strict=True) if one != other]
    assert len(differ) == 1
    assert abs(len(differ[0][0]) - len(differ[0][1])) <= 1


def test_a_part_is_a_run_of_the_words():
    for seed in range(20):
        part = changed("cut", seed=seed).text
        assert part in REVIEW.text
        assert 4 <= len(part.split()) <= 9
    assert changed("cut", Example("too short", None, "")) is None


def test_the_longer_part_is_cut_joined_and_excerpted():
    for name in ("cut", "joined", "excerpt", "resized"):
        found = changed(name, QUESTION)
        assert found.text == QUESTION.text
        assert found.context != QUESTION.context
    assert changed("joined").text.startswith(f"{REVIEW.text} The other text.")
    assert changed("excerpt").text in REVIEW.text
    assert changed("excerpt", Example("One sentence only.", None, "")) is None


def test_lengths_are_drawn_alike_whatever_a_text_had():
    short = Example("A fine day.", None, "")
    long = Example(" ".join(f"Number {n} is here." for n in range(200)), None, "")
    lengths = [sorted(len(changed("resized", one, seed).text.split()) for seed in range(200)) for one in (short, long)]
    for quantile in (20, 100, 180):
        assert lengths[0][quantile] == pytest.approx(lengths[1][quantile], rel=0.35)


def test_greetings_stand_around_the_question_and_not_in_its_passage():
    found = {changed("greeted", QUESTION, seed) for seed in range(9)}
    assert all(QUESTION.text in one.text and one.text != QUESTION.text for one in found)
    assert {one.context for one in found} == {QUESTION.context}


def test_a_view_is_a_function_of_the_seed_and_changes_something():
    for seed in range(50):
        one, same = (view_of(REVIEW, NAMES, np.random.default_rng(seed), another) for _ in range(2))
        assert one == same
        assert one is None or (one.text != REVIEW.text and one.text.strip())
    assert view_of(Example("ok", None, ""), ["excerpt"], np.random.default_rng(0), another) is None


def test_a_text_is_not_cut_below_what_its_task_needs():
    long = Example(" ".join(f"Number {n} is here." for n in range(40)), None, "")
    short = Example("one two three four five six", None, "")
    for seed in range(80):
        found = view_of(long, NAMES, np.random.default_rng(seed), another, least_words=30)
        assert found is None or len(found.text.split()) >= 30
        found = view_of(short, ["cut"], np.random.default_rng(seed), another, least_words=30)
        assert found is None  # it is shorter than that already, and gets no shorter


def test_inputs_of_an_example_stay_the_same_with_and_without_views(system):
    example = next(iter([Example("a fine film", None, "")]))
    kinds = {}
    for rate in (0.0, 1.0):
        data = system.config.data.model_copy(update={"view_rate": rate})
        system.config = system.config.model_copy(update={"data": data})
        rng = np.random.default_rng(1)
        kinds[rate] = [list(RouterInputs(system).of_example("sentiment", example, rng, another)) for _ in range(5)]
    plain = [[one for one in own if one.kind is not InputKind.VIEWED] for own in kinds[1.0]]
    assert plain == kinds[0.0]
    assert any(one.kind is InputKind.VIEWED for own in kinds[1.0] for one in own)
