"""Synthetic questions about who has what, with three options. Splits have their own templates."""

from __future__ import annotations

import random
from typing import Any

from dynamo_mtl.data.samples import capitalized

PEOPLE = ("the baker", "the pilot", "the nurse", "the painter", "the diver", "the farmer", "the tailor", "the smith")
THINGS = ("a lamp", "a ladder", "a kettle", "a drum", "a rope", "a basket", "a globe", "a whistle", "a carpet")
TEMPLATES = {
    "train": (
        "{one} has {first} and {other} has {second}. what does {one} have?",
        "{other} bought {second}, {one} bought {first}. what is {one}'s?",
        "{one} lost {first} while {other} found {second}. what did {one} lose?",
    ),
    "validation": ("{other} sold {second} and {one} sold {first}. what did {one} sell?",),
    "test": ("{one} painted {first}; {other} painted {second}. what did {one} paint?",),
}


def make(rng: random.Random, split: str) -> dict[str, Any]:
    """One row: a question, its options, and the number of the right one."""
    one, other = rng.sample(PEOPLE, 2)
    choices = rng.sample(THINGS, 3)
    answer = rng.randrange(3)
    second = choices[(answer + 1) % 3]
    question = rng.choice(TEMPLATES[split]).format(one=one, other=other, first=choices[answer], second=second)
    return {"question": capitalized(question), "choices": choices, "answer": answer}
