"""General texts: random draws of patterns, distinct, of the form that their task needs."""

import re
from importlib import resources

import numpy as np
import pytest

from dynamo_mtl.data.everyday import TYPES, everyday_rows
from dynamo_mtl.tasks.general_texts import PASSAGE, general_examples
from dynamo_mtl.tasks.instruction_templates import draw, expand
from dynamo_mtl.tasks.registry import alone_in_type, task_types
from dynamo_mtl.tasks.task_config import TaskConfig


def task(kind):
    of_type = task_types()[kind]
    labels = {"labels": ["negative", "positive"]} if kind == "sentiment" else {}
    return of_type(kind, of_type.Config(type=kind, **labels))


def patterns(kind):
    return resources.files("dynamo_mtl.tasks").joinpath("general", f"{kind}.txt").read_text("utf-8").splitlines()


def test_a_draw_is_one_of_the_expansions_and_each_can_come():
    pattern, rng = "(Write|Say) it(| now(| please)):", np.random.default_rng(0)
    assert {draw(pattern, rng) for _ in range(200)} == set(expand(pattern))


@pytest.mark.parametrize("kind", TYPES)
def test_patterns_are_well_formed_and_their_texts_fit_the_type(kind):
    """Fails at an unbalanced or nested-by-mistake pattern, which would leave marks in a text."""
    own = patterns(kind)
    assert len(own) == len(set(own)) >= 60
    for pattern in own:
        depth = 0
        for mark in re.findall(r"[()]", pattern):
            depth += 1 if mark == "(" else -1
            assert 0 <= depth <= 6, pattern
        assert depth == 0, pattern
    texts = general_examples(task(kind), 400, 0)
    assert len({(one.text, one.context) for one in texts}) == 400
    for one in texts:
        assert (one.context is not None) == (kind == "qa")
        assert one.target == ""
        for text in (one.text, one.context or "."):
            assert text.strip()
            assert not set("|()") & set(text)
            assert "  " not in text
            assert PASSAGE.strip() not in text


def test_the_seed_decides_and_other_types_have_none():
    first, same, other = (general_examples(task("translation"), 50, seed) for seed in (1, 1, 2))
    assert first == same != other
    assert general_examples(task("translation"), 0, 1) == []
    labels = task_types()["classification"]
    assert general_examples(labels("a", labels.Config(type="classification", labels=["x", "y"])), 10, 0) == []


@pytest.mark.parametrize("kind", TYPES)
def test_no_everyday_input_is_among_them(kind):
    judged = {tuple(re.findall(r"\w+", str(next(iter(row.values()))).lower())) for row in everyday_rows(kind)}
    learned = {tuple(re.findall(r"\w+", one.text.lower())) for one in general_examples(task(kind), 3000, 0)}
    assert kind == "qa" or not judged & learned  # a short question may come twice, about another passage


def test_only_a_task_that_is_alone_in_its_type_gets_them():
    own = {"a": TaskConfig(type="qa"), "b": TaskConfig(type="qa"), "c": TaskConfig(type="translation"),
           "d": TaskConfig(type="summarization", requires_instruction=True)}  # fmt: skip
    assert alone_in_type(own) == ["c"]
