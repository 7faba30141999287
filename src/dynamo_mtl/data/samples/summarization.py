"""Synthetic short news: a few sentences, of which one tells the event, and a one-sentence summary of the event."""

from __future__ import annotations

import random
from typing import Any

from dynamo_mtl.data.samples import capitalized

CITIES = (
    "Halden", "Marwick", "Lindau", "Torvale", "Eastmere", "Corrin", "Velden", "Ashford", "Brenna", "Oakhill",
    "Sarnow", "Kestrel Bay", "Dunmore", "Pellworth", "Riga Falls", "Moorgate",
)  # fmt: skip
EVENTS = (
    ("a fire", "destroyed"), ("a storm", "damaged"), ("a flood", "closed"), ("a burst pipe", "flooded"),
    ("a power cut", "shut down"), ("a group of students", "painted"), ("a retired engineer", "repaired"),
    ("a local charity", "bought"), ("a court", "saved"), ("an earthquake", "shook"), ("a film crew", "rented"),
    ("a swarm of bees", "emptied"), ("a truck", "blocked"), ("the council", "reopened"),
)  # fmt: skip
OBJECTS = (
    "the town hall", "the old bridge", "the public library", "the railway station", "the city museum", "the theatre",
    "the main market", "the football stadium", "the harbour", "the hospital", "the swimming pool", "the lighthouse",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NAMES = ("Anna Berg", "Tom Hale", "Ines Costa", "Paul Reiter", "Mara Lind", "Omar Aziz", "Julia Novak", "Sam Whitlock")

LEADS = {
    "train": (
        "People stopped in the streets and took pictures.",
        "Nobody had expected such a start to the week.",
        "Children were sent home early and shops stayed shut.",
        "It was the talk of every café in the region.",
        "Phones at the local newspaper did not stop ringing.",
        "For once the weather was not the main topic of conversation.",
    ),
    "validation": (
        "Rarely have so many residents agreed on what mattered.",
        "Breakfast tables were louder than usual.",
    ),
    "test": ("The morning bulletin had only one subject.", "Neighbours gathered on the pavement to compare notes."),
}
FRAMES = {
    "train": (
        "According to the police, {event} {verb} {object} in {city} on {day}.",
        "On {day} {event} {verb} {object} in {city}, officials said.",
        "In {city}, {event} {verb} {object} late on {day}.",
        "Witnesses in {city} reported that {event} {verb} {object} on {day} afternoon.",
        "{Event} {verb} {object} in the centre of {city}, as the mayor confirmed on {day}.",
        "It was {day} when {event} {verb} {object}, which visitors know as the pride of {city}.",
    ),
    "validation": (
        "What happened on {day} is now clear: in the heart of {city} {event} {verb} {object}.",
        "{name} was on the way to work in {city} on {day} and saw how {event} {verb} {object}.",
    ),
    "test": (
        "By {day} evening the whole of {city} knew that {event} {verb} {object}.",
        "A spokesperson for {city}, {name}, said on {day} that {event} {verb} {object}.",
    ),
}
DETAILS = {
    "train": (
        "No one was hurt, said {name}, who lives nearby.",
        "The costs are not yet known.",
        "{name} called the news a surprise and asked for patience.",
        "A public meeting is planned for {day2}.",
        "Buses will take another route until {day2}.",
        "Similar events had been reported ten years ago.",
        "Tourists are advised to ask for details at the information desk.",
        "The region has about forty thousand inhabitants.",
    ),
    "validation": (
        "A decision about the next steps is due before {day2}.",
        "{name} spoke of mixed feelings among the staff.",
        "Insurance experts have started to look at the papers.",
    ),
    "test": (
        "Volunteers brought tea and sandwiches to those who waited.",
        "Until {day2} a telephone line will be open, {name} added.",
        "Historians at once went through their archives.",
    ),
}


def make(rng: random.Random, split: str) -> dict[str, Any]:
    """One document with its summary."""
    event, verb = rng.choice(EVENTS)
    day, day2 = rng.sample(DAYS, 2)
    words = {
        "event": event, "Event": capitalized(event), "verb": verb, "object": rng.choice(OBJECTS),
        "city": rng.choice(CITIES), "day": day, "day2": day2, "name": rng.choice(NAMES),
    }  # fmt: skip
    details = [d.format(**{**words, "name": rng.choice(NAMES)}) for d in rng.sample(DETAILS[split], 2)]
    news = [rng.choice(LEADS[split]), rng.choice(FRAMES[split]).format(**words), *details]
    summary = "{Event} {verb} {object} in {city}.".format(**words)
    return {"document": " ".join(news), "summary": summary}
