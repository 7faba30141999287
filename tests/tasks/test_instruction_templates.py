"""Instructions: what patterns stand for, and that no set knows another's."""

import itertools
import re

import pytest
from tiny import TASKS

from dynamo_mtl.tasks.instruction_templates import expand, read_instruction_templates


@pytest.mark.parametrize(
    ("pattern", "instructions"),
    [
        ("plain", ("plain",)),
        ("(a|b) c", ("a c", "b c")),
        ("a( b|):", ("a b:", "a:")),
        ("(a|b)(c|d)", ("ac", "ad", "bc", "bd")),
        ("(a(b|(c|d)e)|f)g", ("abg", "aceg", "adeg", "fg")),
        ("(a|a)", ("a",)),
        ("", ("",)),
    ],
)
def test_choices_expand_in_order_and_each_once(pattern, instructions):
    assert expand(pattern) == instructions


@pytest.mark.parametrize("task", TASKS)
def test_no_wording_is_known_from_another_set(task):
    """Also not with other capitals or punctuation. Fails if training keeps a instruction of evaluation."""
    sets = read_instruction_templates(task)
    words = [
        {tuple(re.findall(r"\w+", instruction.lower())) for instruction in instructions}
        for instructions in (sets.training, sets.validation, sets.evaluation)
    ]
    assert all(not first & second for first, second in itertools.combinations(words, 2))
    assert len(sets.training) >= 1000
    assert len(sets.validation) >= 100
    assert len(sets.evaluation) >= 10


@pytest.mark.parametrize("task", TASKS)
def test_wordings_are_clean(task):
    sets = read_instruction_templates(task)
    for instruction in (*sets.training, *sets.validation, *sets.evaluation):
        assert instruction == " ".join(instruction.split()), instruction
        assert not set(instruction) & set("()|"), instruction


def test_no_task_asks_in_the_words_of_another():
    """Fails if two tasks share a instruction: it would name neither."""
    owners = {}
    for task in TASKS:
        sets = read_instruction_templates(task)
        for instruction in (*sets.training, *sets.validation, *sets.evaluation):
            assert owners.setdefault(instruction.lower(), task) == task, instruction
