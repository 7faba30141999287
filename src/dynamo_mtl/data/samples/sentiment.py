"""Synthetic film reviews. Splits have their own templates and share the words that carry the opinion."""

from __future__ import annotations

import random
from typing import Any

from dynamo_mtl.data.samples import capitalized, with_articles

THINGS = (
    "the acting", "the story", "the soundtrack", "the camera work", "the dialogue", "the ending", "the humour",
    "the pacing", "the lead performance", "the script", "the opening", "the direction", "the score", "the cast",
)  # fmt: skip
KINDS = ("film", "thriller", "comedy", "drama", "documentary", "sequel", "romance", "western", "debut", "musical")
ADJECTIVES = (
    ("dull", "tedious", "clumsy", "awful", "bland", "lifeless", "predictable", "messy", "hollow", "annoying",
     "confusing", "lazy", "stale", "painful", "forgettable"),
    ("wonderful", "brilliant", "moving", "charming", "delightful", "gripping", "superb", "clever", "beautiful", "warm",
     "inspired", "refreshing", "hilarious", "touching", "unforgettable"),
)  # fmt: skip
VERDICTS = (
    ("a waste of an evening", "hard to sit through", "a real chore", "best forgotten", "a complete letdown",
     "an insult to its audience", "not worth the ticket"),
    ("worth every minute", "a real joy", "one to remember", "a small treasure", "a complete triumph",
     "a gift to its audience", "worth seeing twice"),
)  # fmt: skip
FEELINGS = (
    ("bored", "tired", "irritated", "disappointed", "cheated", "restless"),
    ("happy", "thrilled", "grateful", "amazed", "enchanted", "hopeful"),
)
TEMPLATES = {
    "train": (
        "{thing} was {adjective} and {thing2} was {adjective2}.",
        "this {kind} is {verdict}.",
        "i left the cinema {feeling}, because {thing} was so {adjective}.",
        "a {kind} with {adjective} dialogue and an ending that is {verdict}.",
        "people will tell you that this {kind} is {opposite}, but i found it {adjective}.",
        "from the first scene {thing} is {adjective}.",
        "{thing} alone makes this {kind} {verdict}.",
        "even my grandmother felt {feeling} after this {adjective} {kind}.",
        "what a {adjective} {kind}!",
        "{thing} is not {opposite} at all, it is {adjective} from start to finish.",
        "two hours later i was {feeling} and convinced that this is {verdict}.",
        "the director made a {adjective}, {adjective2} {kind}.",
    ),
    "validation": (
        "if you only see one {kind} this year, know that it is {adjective} and {verdict}.",
        "my friends and i were {feeling} long before the credits rolled; {thing} felt {adjective}.",
        "somehow {thing} stays {adjective}, while {thing2} could hardly be more {adjective2}.",
    ),
    "test": (
        "critics argued for weeks, yet to me {thing} seemed {adjective}, and the whole {kind} was {verdict}.",
        "we walked home {feeling}: rarely has a {kind} been so {adjective}.",
        "there is something {adjective} about the way {thing} meets {thing2}.",
    ),
}


def make(rng: random.Random, split: str) -> dict[str, Any]:
    """One review with its label, 0 negative or 1 positive."""
    label = rng.randrange(2)
    thing, thing2 = rng.sample(THINGS, 2)
    adjective, adjective2 = rng.sample(ADJECTIVES[label], 2)
    text = rng.choice(TEMPLATES[split]).format(
        thing=thing,
        thing2=thing2,
        adjective=adjective,
        adjective2=adjective2,
        opposite=rng.choice(ADJECTIVES[1 - label]),
        kind=rng.choice(KINDS),
        verdict=rng.choice(VERDICTS[label]),
        feeling=rng.choice(FEELINGS[label]),
    )
    return {"text": capitalized(with_articles(text)).replace(" i ", " I "), "label": label}
