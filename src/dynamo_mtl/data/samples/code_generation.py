"""Synthetic descriptions of Python functions. Splits have their own phrasings and share the operations."""

from __future__ import annotations

import random
from typing import Any

from dynamo_mtl.data.samples import capitalized

NUMBER_FILTERS = (
    ("even numbers", "value % 2 == 0"), ("odd numbers", "value % 2 == 1"), ("positive numbers", "value > 0"),
    ("negative numbers", "value < 0"), ("numbers above {n}", "value > {n}"), ("numbers below {n}", "value < {n}"),
    ("multiples of {n}", "value % {n} == 0"),
)  # fmt: skip
NUMBER_MAPS = (
    ("the square", "value ** 2"), ("the double", "value * 2"), ("the absolute value", "abs(value)"),
    ("the half", "value / 2"), ("the cube", "value ** 3"),
)  # fmt: skip
WORD_FILTERS = (
    ("words longer than {n} letters", "len(value) > {n}"), ("words shorter than {n} letters", "len(value) < {n}"),
    ("capitalized words", "value.istitle()"), ("words that end in {c}", 'value.endswith("{c}")'),
    ("words that start with {c}", 'value.startswith("{c}")'),
)  # fmt: skip
WORD_MAPS = (
    ("the upper case form", "value.upper()"), ("the length", "len(value)"), ("the reverse", "value[::-1]"),
    ("the first letter", "value[0]"),
)  # fmt: skip
# What is returned: phrase, start, step, result.
COLLECT = ("a list", "[]", "result.append({m})", "result")
NUMBER_RESULTS = (
    COLLECT, ("the sum", "0", "result += {m}", "result"), ("the product", "1", "result *= {m}", "result"),
    ("the sorted list", "[]", "result.append({m})", "sorted(result)"),
)  # fmt: skip
WORD_RESULTS = (COLLECT, ("a set", "set()", "result.add({m})", "result"))
NAMES = ("solve", "compute", "collect", "process")
TEMPLATES = {
    "train": (
        "Define a function {name} that returns {r} of {m} of all {f}.",
        "Write {name}, which takes {f} and returns {r} with {m} of each.",
        "The function {name} goes through its values, keeps the {f} and gives back {r} of {m}.",
        "Create a function called {name}: for the {f} among the values return {r} of {m}.",
        "{name} should return {r} that holds {m} of the {f}.",
        "Make a function {name} to compute {r} of {m}, using only {f}.",
    ),
    "validation": (
        "Please implement {name} so that, of the given values, just the {f} count and {r} of {m} comes out.",
        "Given some values, {name} ignores all but the {f}; its result is {r} of {m}.",
    ),
    "test": (
        "We need a helper, {name}, whose answer is {r} of {m}, restricted to {f}.",
        "Only {f} matter to {name}: take {m} of every such value and hand over {r}.",
    ),
}


def make(rng: random.Random, split: str) -> dict[str, Any]:
    """One description with its function."""
    if rng.random() < 0.5:
        kept, mapped, returned = rng.choice(NUMBER_FILTERS), rng.choice(NUMBER_MAPS), rng.choice(NUMBER_RESULTS)
    else:
        kept, mapped, returned = rng.choice(WORD_FILTERS), rng.choice(WORD_MAPS), rng.choice(WORD_RESULTS)
    slots = {"n": rng.randint(2, 9), "c": rng.choice("aenst")}
    name = rng.choice(NAMES)
    phrase, start, step, result = returned
    description = rng.choice(TEMPLATES[split]).format(name=name, r=phrase, m=mapped[0], f=kept[0].format(**slots))
    code = (
        f"def {name}(values):\n"
        f"    result = {start}\n"
        f"    for value in values:\n"
        f"        if {kept[1].format(**slots)}:\n"
        f"            {step.format(m=mapped[1])}\n"
        f"    return {result}"
    )
    return {"description": capitalized(description) if not description.startswith(name) else description, "code": code}
