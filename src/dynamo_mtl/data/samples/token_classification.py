"""Synthetic sentences with names. Splits have their own templates and share the parts of the names."""

from __future__ import annotations

import random
import re
from typing import Any

FIRST = ("Ada", "Ben", "Clara", "Dmitri", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Luis", "Mona")
LAST = (
    "Abel",
    "Brandt",
    "Costa",
    "Dahl",
    "Egger",
    "Fontaine",
    "Grau",
    "Hartmann",
    "Ito",
    "Jensen",
    "Kovac",
    "Lindqvist",
)
PLACES = ("Aldenburg", "Bergsee", "Castelmar", "Drakov", "Eastham", "Fellbach", "Granitz", "Halvik", "Isola", "Jarno")
STEMS = ("Nordwind", "Silverleaf", "Kestrel", "Brightwater", "Oakfield", "Blue Harbor", "Ironbridge", "Larkspur")
FORMS = ("Bank", "Motors", "Foods", "Textiles", "University", "Airlines", "Press", "Hospital")
TEMPLATES = {
    "train": (
        "{PER} moved from {LOC} to {LOC2} last spring .",
        "{ORG} opened an office in {LOC} .",
        "according to {PER} , {ORG} will sell its plant near {LOC} .",
        "{PER} and {PER2} work for {ORG} .",
        "the mayor of {LOC} thanked {ORG} for the new bridge .",
        "shares of {ORG} fell after {PER} left .",
        "in {LOC} the weather was cold , said {PER} .",
        "{ORG} and {ORG2} signed a contract .",
        "{PER} was born in {LOC} .",
        "nobody at {ORG} wanted to comment .",
        "it rained for three days .",
    ),
    "validation": (
        "{PER} of {ORG} visited {LOC} on Monday .",
        "a train from {LOC} was late , {PER} wrote .",
        "{ORG} hired {PER} .",
        "the shop was closed again .",
    ),
    "test": (
        "{ORG} moved its head office to {LOC} , {PER} confirmed .",
        "{PER} met {PER2} in {LOC} .",
        "there was no news today .",
    ),
}


def _name(kind: str, rng: random.Random) -> str:
    if kind == "PER":
        return f"{rng.choice(FIRST)} {rng.choice(LAST)}" if rng.random() < 0.8 else rng.choice(FIRST)
    return rng.choice(PLACES) if kind == "LOC" else f"{rng.choice(STEMS)} {rng.choice(FORMS)}"


def make(rng: random.Random, split: str) -> dict[str, Any]:
    """One row: a text and its entities."""
    text = ""
    entities: list[dict[str, Any]] = []
    for part in re.split(r"(\{\w+\})", rng.choice(TEMPLATES[split])):
        if part.startswith("{"):
            kind = part[1:4]
            name = _name(kind, rng)
            entities.append({"start": len(text), "end": len(text) + len(name), "label": kind})
            text += name
        else:
            text += part
    number = rng.randrange(1000)
    return {"text": f"{text} ( item {number} )", "entities": entities}
