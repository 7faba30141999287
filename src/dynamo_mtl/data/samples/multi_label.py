"""Synthetic remarks of hotel guests about none, one or several things. Splits have their own templates."""

from __future__ import annotations

import random
from typing import Any

from dynamo_mtl.data.samples import capitalized

ASPECTS = {
    "room": ("the bed", "our room", "the shower", "the view from the window"),
    "food": ("the breakfast", "the soup", "the coffee", "dinner on the terrace"),
    "staff": ("the porter", "everybody at the desk", "the waiter", "the cleaner"),
    "price": ("the bill", "the fee for parking", "the rate at weekends", "the deposit"),
}
OPINIONS = {
    "train": ("was a surprise", "could not have been better", "is nothing to write home about", "was just right"),
    "validation": ("did not please us", "was what we had hoped for"),
    "test": ("stays in my mind", "was worse than last year"),
}
EMPTY = {
    "train": ("we came by train on a {day}.", "it rained when we arrived on {day}.", "we will be back on a {day}."),
    "validation": ("our stay ended on a {day}.",),
    "test": ("we found the place by chance on a {day}.",),
}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def make(rng: random.Random, split: str) -> dict[str, Any]:
    """One row: a remark and the aspects that it is about."""
    aspects = rng.sample(list(ASPECTS), rng.choice((0, 1, 1, 2, 2, 3)))
    said = [f"{rng.choice(ASPECTS[aspect])} {rng.choice(OPINIONS[split])}" for aspect in aspects]
    text = ", and ".join(said) + "." if said else rng.choice(EMPTY[split]).format(day=rng.choice(DAYS))
    return {"text": capitalized(f"{text} (stay {rng.randrange(1, 9000)})"), "labels": sorted(aspects)}
