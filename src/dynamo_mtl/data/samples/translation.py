"""Synthetic English–German sentences. Splits have their own sentence frames and share nouns, verbs and places."""

from __future__ import annotations

import random
from typing import Any

from dynamo_mtl.data.samples import capitalized

SUBJECTS = (
    ("the man", "der Mann"), ("the woman", "die Frau"), ("the child", "das Kind"), ("the teacher", "der Lehrer"),
    ("my sister", "meine Schwester"), ("my brother", "mein Bruder"), ("the doctor", "der Arzt"),
    ("our neighbour", "unser Nachbar"), ("the girl", "das Mädchen"), ("the old farmer", "der alte Bauer"),
    ("her friend", "ihre Freundin"), ("the baker", "der Bäcker"),
)  # fmt: skip
# English third person, English infinitive, German third person, German infinitive, German object.
ACTIONS = (
    ("buys an apple", "buy an apple", "kauft", "kaufen", "einen Apfel"),
    ("reads a book", "read a book", "liest", "lesen", "ein Buch"),
    ("drinks the coffee", "drink the coffee", "trinkt", "trinken", "den Kaffee"),
    ("sees the dog", "see the dog", "sieht", "sehen", "den Hund"),
    ("writes a letter", "write a letter", "schreibt", "schreiben", "einen Brief"),
    ("paints a picture", "paint a picture", "malt", "malen", "ein Bild"),
    ("sells the car", "sell the car", "verkauft", "verkaufen", "das Auto"),
    ("eats the bread", "eat the bread", "isst", "essen", "das Brot"),
    ("looks for the key", "look for the key", "sucht", "suchen", "den Schlüssel"),
    ("finds a coin", "find a coin", "findet", "finden", "eine Münze"),
    ("cooks the soup", "cook the soup", "kocht", "kochen", "die Suppe"),
    ("brings the flowers", "bring the flowers", "bringt", "bringen", "die Blumen"),
    ("hears the music", "hear the music", "hört", "hören", "die Musik"),
    ("needs a ladder", "need a ladder", "braucht", "brauchen", "eine Leiter"),
)
PLACES = (
    ("at the market", "auf dem Markt"), ("in the garden", "im Garten"), ("in the kitchen", "in der Küche"),
    ("at the station", "am Bahnhof"), ("in the city", "in der Stadt"), ("in front of the house", "vor dem Haus"),
    ("by the river", "am Fluss"), ("in the school", "in der Schule"),
)  # fmt: skip
TIMES = (
    ("today", "heute"), ("now", "jetzt"), ("every morning", "jeden Morgen"), ("in the evening", "am Abend"),
    ("on Sunday", "am Sonntag"), ("this week", "diese Woche"),
)  # fmt: skip
ADJECTIVES = (
    ("tired", "müde"), ("happy", "glücklich"), ("sick", "krank"), ("hungry", "hungrig"), ("late", "spät dran"),
    ("alone", "allein"),
)  # fmt: skip
# A frame is an opening, a plain or a modal verb, with or without a place, with or without a second clause.
OPENINGS = ("plain", "time", "that", "question")
Frame = tuple[str, bool, bool, bool]
HELD_OUT: dict[str, tuple[Frame, ...]] = {
    "validation": (
        ("time", True, True, True), ("that", False, True, True), ("question", True, False, True),
        ("plain", True, True, False), ("time", False, False, True),
    ),
    "test": (
        ("that", True, True, True), ("question", False, True, True), ("plain", False, False, True),
        ("time", True, True, False), ("that", True, False, False),
    ),
}  # fmt: skip
ALL_FRAMES: tuple[Frame, ...] = tuple(
    (opening, modal, place, tail)
    for opening in OPENINGS
    for modal in (False, True)
    for place in (False, True)
    for tail in (False, True)
)
FRAMES = {**HELD_OUT, "train": tuple(f for f in ALL_FRAMES if not any(f in held for held in HELD_OUT.values()))}


def make(rng: random.Random, split: str) -> dict[str, Any]:
    """One sentence pair."""
    opening, modal, has_place, has_tail = rng.choice(FRAMES[split])
    subject, knower, other = rng.sample(SUBJECTS, 3)
    third, infinitive, german_third, german_infinitive, german_object = rng.choice(ACTIONS)
    place = rng.choice(PLACES) if has_place else ("", "")
    time = rng.choice(TIMES)
    verb, base, finite, last = third, infinitive, german_third, ""
    if modal:
        wish = rng.random() < 0.5
        verb, base = (f"wants to {infinitive}", f"want to {infinitive}") if wish else (f"must {infinitive}", infinitive)
        finite, last = "will" if wish else "muss", german_infinitive
        auxiliary = "does" if wish else "must"
    else:
        auxiliary = "does"
    middle = _join(place[1], german_object, last)
    if opening == "plain":
        english, german = _join(subject[0], verb, place[0]), _join(subject[1], finite, middle)
    elif opening == "time":
        english, german = _join(time[0], subject[0], verb, place[0]), _join(time[1], finite, subject[1], middle)
    elif opening == "that":
        think = rng.random() < 0.5
        english = _join("I think that" if think else f"{knower[0]} knows that", subject[0], verb, place[0])
        german = _join("ich glaube, dass" if think else f"{knower[1]} weiß, dass", subject[1], middle, finite)
    else:
        english, german = _join(auxiliary, subject[0], base, place[0]), _join(finite, subject[1], middle)
    if has_tail:
        mood = rng.choice(ADJECTIVES)
        if rng.random() < 0.5:
            english, german = f"{english}, because {other[0]} is {mood[0]}", f"{german}, weil {other[1]} {mood[1]} ist"
        else:
            english, german = f"{english}, but {other[0]} is {mood[0]}", f"{german}, aber {other[1]} ist {mood[1]}"
    end = "?" if opening == "question" else "."
    return {"source": capitalized(english) + end, "target": capitalized(german) + end}


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)
