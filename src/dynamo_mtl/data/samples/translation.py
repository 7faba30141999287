"""Synthetic English–German sentences. Sentence frames are split; nouns, verbs and places are shared."""

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
FRAMES = {
    "train": (
        ("{s} {v}.", "{S} {g} {o}."),
        ("{s} {v} {p}.", "{S} {g} {o} {P}."),
        ("{t} {s} {v}.", "{T} {g} {sg} {o}."),
        ("{s} wants to {i}.", "{S} will {o} {gi}."),
        ("does {s} {i}?", "{G} {sg} {o}?"),
        ("{s} {v}, because {s2} is {a}.", "{S} {g} {o}, weil {s2g} {A} ist."),
        ("I think that {s} {v}.", "Ich glaube, dass {sg} {o} {g}."),
        ("{t} {s} wants to {i} {p}.", "{T} will {sg} {P} {o} {gi}."),
        ("{s} is {a}.", "{S} ist {A}."),
        ("{s} must {i} {t}.", "{S} muss {T_low} {o} {gi}."),
        ("{s2} knows that {s} {v} {p}.", "{S2} weiß, dass {sg} {P} {o} {g}."),
    ),
    "validation": (
        ("{t} {s} must {i}, because {s2} is {a}.", "{T} muss {sg} {o} {gi}, weil {s2g} {A} ist."),
        ("I think that {s} wants to {i} {p}.", "Ich glaube, dass {sg} {P} {o} {gi} will."),
        ("{s2} is {a}, but {s} {v} {p}.", "{S2} ist {A}, aber {sg} {g} {o} {P}."),
    ),
    "test": (
        ("does {s} want to {i} {p} {t}?", "Will {sg} {T_low} {P} {o} {gi}?"),
        ("{s2} knows that {s} is {a} and {v}.", "{S2} weiß, dass {sg} {A} ist und {o} {g}."),
        ("{t} {s} {v} {p}, and {s2} is {a}.", "{T} {g} {sg} {o} {P}, und {s2g} ist {A}."),
    ),
}


def make(rng: random.Random, split: str) -> dict[str, Any]:
    """One sentence pair."""
    (s, sg), (s2, s2g) = rng.sample(SUBJECTS, 2)
    v, i, g, gi, o = rng.choice(ACTIONS)
    (p, place), (t, time), (a, adjective) = rng.choice(PLACES), rng.choice(TIMES), rng.choice(ADJECTIVES)
    english, german = rng.choice(FRAMES[split])
    words = {
        "s": s, "s2": s2, "v": v, "i": i, "p": p, "t": t, "a": a, "sg": sg, "s2g": s2g, "g": g, "gi": gi, "o": o,
        "S": capitalized(sg), "S2": capitalized(s2g), "G": capitalized(g), "P": place, "A": adjective,
        "T": capitalized(time), "T_low": time,
    }  # fmt: skip
    return {"source": capitalized(english.format(**words)), "target": german.format(**words)}
