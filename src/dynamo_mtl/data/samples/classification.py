"""Synthetic requests to a town office, by topic. Splits have their own templates and share the words of a topic."""

from __future__ import annotations

import random
from typing import Any

from dynamo_mtl.data.samples import capitalized

TOPICS = {
    "waste": ("bin", "recycling bag", "bulky furniture", "garden cuttings", "glass container", "compost heap"),
    "traffic": ("bus stop", "parking space", "zebra crossing", "cycle lane", "traffic light", "road works"),
    "culture": ("library card", "concert hall", "museum ticket", "theatre season", "music school", "book fair"),
}
TEMPLATES = {
    "train": (
        "where can i find a {thing} near {street}?",
        "the {thing} in {street} is missing.",
        "who is responsible for the {thing}?",
        "please send somebody about the {thing} in {street}.",
        "i have a question about my {thing}.",
        "how much does a {thing} cost?",
        "since monday the {thing} in {street} has been a problem.",
    ),
    "validation": (
        "is there any news of the {thing} at {street}?",
        "nobody answers my letter about the {thing} in {street}.",
        "thank you for the {thing} in {street}.",
    ),
    "test": ("could you explain the {thing} of {street}?", "my neighbour in {street} has no {thing}."),
}
STREETS = ("mill lane", "station road", "church square", "river street", "the old market", "hill avenue", "north gate")


def make(rng: random.Random, split: str) -> dict[str, Any]:
    """One row: a text and its topic."""
    topic = rng.choice(list(TOPICS))
    street = f"{rng.choice(STREETS)} {rng.randrange(1, 90)}"
    text = rng.choice(TEMPLATES[split]).format(thing=rng.choice(TOPICS[topic]), street=street)
    return {"text": capitalized(f"{text} ({rng.randrange(1000)})"), "label": topic}
