"""The built-in corpus: thousands of distinct rows, the same every time, disjoint by template."""

import ast
import difflib

import pytest
from tiny import TASKS

from dynamo_mtl.data.samples import SIZES, sample_rows
from dynamo_mtl.errors import DataError

INPUTS = {"sentiment": "text", "qa": "context", "summarization": "document", "code_generation": "description",
          "translation": "source"}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_many_distinct_and_reproducible(task):
    rows = list(sample_rows(task, "train"))
    assert len({repr(row) for row in rows}) == len(rows) == SIZES["train"] >= 2000
    assert rows == list(sample_rows(task, "train"))
    assert rows != list(sample_rows(task, "train", seed=1))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_no_test_input_is_a_training_input_with_a_word_changed(task, split):
    train = [row[INPUTS[task]].lower().split() for row in sample_rows(task, "train")]
    for row in list(sample_rows(task, split))[:12]:
        words = row[INPUTS[task]].lower().split()
        same_length = [other for other in train if abs(len(other) - len(words)) <= 1]
        for other in same_length:
            if sum(a == b for a, b in zip(words, other, strict=False)) < len(words) - 3:
                continue
            matched = sum(block.size for block in difflib.SequenceMatcher(None, words, other).get_matching_blocks())
            assert max(len(words), len(other)) - matched > 1, (words, other)


def test_answers_stand_in_their_contexts_and_functions_parse():
    for row in sample_rows("qa", "train"):
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text
    for row in sample_rows("code_generation", "validation"):
        ast.parse(row["code"])


def test_functions_do_what_they_say():
    row = next(r for r in sample_rows("code_generation", "train") if "the sum of the square" in r["description"]
               and "even numbers" in r["description"])  # fmt: skip
    space = {}
    exec(row["code"], space)  # our own synthetic code
    assert next(v for k, v in space.items() if callable(v) and not k.startswith("_"))([1, 2, 3, 4]) == 20


def test_an_unknown_split_or_type_is_refused():
    with pytest.raises(DataError, match="no split 'dev'"):
        next(sample_rows("qa", "dev"))
    with pytest.raises(DataError, match="no sample corpus for task type 'poetry'"):
        next(sample_rows("poetry", "train"))
