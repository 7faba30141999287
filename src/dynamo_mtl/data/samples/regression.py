"""Synthetic reviews of products with a score from 0 to 10: half of it for each of two things that are judged."""

from __future__ import annotations

import random
from typing import Any

from dynamo_mtl.data.samples import capitalized

WORDS = {
    "train": ("awful", "poor", "fair", "good", "great", "perfect"),
    "validation": ("dreadful", "poor", "passable", "good", "fine", "perfect"),
    "test": ("horrible", "bad", "middling", "decent", "excellent", "flawless"),
}
TEMPLATES = {
    "train": (
        "the {one} is {first} and the {other} {second}.",
        "{first} {one}, {second} {other}.",
        "i would call the {one} {first}; the {other} is {second}.",
    ),
    "validation": ("we found the {one} {first} and the {other} {second}.",),
    "test": ("about the {other}: {second}. about the {one}: {first}.",),
}
PARTS = ("handle", "display", "battery", "case", "keyboard", "sound", "manual", "zip", "strap", "finish")


def make(rng: random.Random, split: str) -> dict[str, Any]:
    """One row: a review and its score."""
    one, other = rng.sample(PARTS, 2)
    first, second = rng.randrange(6), rng.randrange(6)
    words = WORDS[split]
    text = rng.choice(TEMPLATES[split]).format(one=one, other=other, first=words[first], second=words[second])
    return {"text": capitalized(f"{text} (order {rng.randrange(1, 900)})"), "score": float(first + second)}
