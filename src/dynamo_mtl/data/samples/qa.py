"""Synthetic passages of invented facts with questions. Splits have their own kinds of passage."""

from __future__ import annotations

import random
from typing import Any

PEOPLE = (
    "Anna Berg", "Tom Hale", "Ines Costa", "Paul Reiter", "Mara Lind", "Omar Aziz", "Julia Novak", "Sam Whitlock",
    "Lena Fischer", "Hugo Brandt", "Clara Moreau", "Ivan Petrov", "Nora Quinn", "Felix Okoye", "Ruth Adler",
    "Leo Tanaka",
)  # fmt: skip
PLACES = (
    "Halden", "Marwick", "Lindau", "Torvale", "Eastmere", "Corrin", "Velden", "Ashford", "Brenna", "Oakhill",
    "Sarnow", "Kestrel Bay", "Dunmore", "Pellworth", "Moorgate", "Silverlake",
)  # fmt: skip
THINGS = (
    "glass lamps", "wooden chairs", "copper wire", "wool blankets", "paper maps", "steel knives", "clay pots",
    "silk scarves", "stone tiles", "leather boots", "old clocks", "brass bells",
)  # fmt: skip
ANIMALS = ("grey wolves", "white storks", "brown bears", "red foxes", "sea eagles", "wild goats", "river otters")
COLOURS = ("dark green", "bright yellow", "pale blue", "deep red", "pure white", "light grey")
# Each kind: facts as (sentence, question, slot of the answer).
KINDS: dict[str, tuple[tuple[tuple[str, str, str], ...], ...]] = {
    "train": (
        (
            ("The company was founded in {year} by {person}.", "Who founded the company?", "person"),
            ("It began in {year2}, when a first shop opened in {place}.", "Where did the first shop open?", "place"),
            ("Today it sells {thing} in {number} countries.", "What does the company sell today?", "thing"),
            ("Its director, {person2}, wants to hire {number2} more people.", "Who is the director?", "person2"),
            ("The factory moved to {place2} in {year3}.", "When did the factory move?", "year3"),
        ),
        (
            ("{person} was born in {place} in {year}.", "Where was {person} born?", "place"),
            ("The family moved to {place2} when she was {number} years old.", "Where did the family move?", "place2"),
            (
                "In {year2} she met {person2}, who taught her to repair {thing}.",
                "Whom did she meet in {year2}?",
                "person2",
            ),
            ("Her first book appeared in {year3}.", "In what year did her first book appear?", "year3"),
            ("She wrote it about {animal}.", "What was her book about?", "animal"),
        ),
        (
            ("The bridge over the river was built in {year}.", "When was the bridge built?", "year"),
            ("{person} drew the plans.", "Who drew the plans of the bridge?", "person"),
            ("It is {number} metres long and painted {colour}.", "What colour is the bridge?", "colour"),
            ("It joins {place} with the village of {place2}.", "Which village does the bridge join?", "place2"),
            ("In {year2} a ship loaded with {thing} hit it.", "What was the ship loaded with?", "thing"),
        ),
        (
            ("The nature park near {place} opened in {year}.", "When did the nature park open?", "year"),
            ("Visitors come to see {animal}.", "What do visitors come to see?", "animal"),
            ("{person} looks after them with {number} helpers.", "How many helpers are there?", "number"),
            ("A tower of {colour} wood stands at the gate.", "What colour is the tower?", "colour"),
            ("The nearest railway station is in {place2}.", "Where is the nearest railway station?", "place2"),
        ),
        (
            ("The museum shows {thing} from {number} countries.", "What does the museum show?", "thing"),
            ("{person} gave the first piece in {year}.", "Who gave the first piece?", "person"),
            ("A fire in {year2} destroyed the east wing.", "In which year was there a fire?", "year2"),
            ("Since then the collection has been kept in {place}.", "Where is the collection kept?", "place"),
            ("On Sundays {person2} guides groups of children.", "Who guides groups of children?", "person2"),
        ),
        (
            ("The football club of {place} was formed in {year}.", "When was the club formed?", "year"),
            ("Its players wear {colour} shirts.", "What colour are the shirts?", "colour"),
            ("{person} trained the team for {number} years.", "Who trained the team?", "person"),
            ("The greatest victory came in {year2} against {place2}.", "Against which town was the victory?", "place2"),
            ("A factory for {thing} pays for the stadium.", "What does the factory that pays make?", "thing"),
        ),
        (
            ("The school in {place} has {number} pupils.", "How many pupils does the school have?", "number"),
            ("{person} has been its head since {year}.", "Since when has {person} been the head?", "year"),
            ("Pupils learn to make {thing} in the workshop.", "What do pupils learn to make?", "thing"),
            ("A painting of {animal} hangs in the hall.", "What does the painting show?", "animal"),
            ("Every summer they travel to {place2}.", "Where do they travel every summer?", "place2"),
        ),
    ),
    "validation": (
        (
            ("The sailing ship left {place} in {year}.", "From where did the sailing ship leave?", "place"),
            ("{person} was its captain.", "Who was the captain of the ship?", "person"),
            ("It carried {thing} and a crew of {number}.", "What did the ship carry?", "thing"),
            ("After a storm it reached {place2} with {colour} sails.", "What colour were the sails?", "colour"),
            ("A cook named {person2} kept a diary.", "Who kept a diary?", "person2"),
        ),
        (
            ("The castle above {place} is {number} years old.", "How old is the castle?", "number"),
            ("It belonged to {person} until {year}.", "Until when did it belong to {person}?", "year"),
            ("Its cellar is full of {thing}.", "What is the cellar full of?", "thing"),
            ("Above the door one sees a picture of {animal}.", "What is in the picture above the door?", "animal"),
            ("{person2} bought it for a small sum.", "Who bought the castle?", "person2"),
        ),
    ),
    "test": (
        (
            ("The music festival takes place in {place}.", "Where does the festival take place?", "place"),
            ("{person} started it in {year}.", "When did the festival start?", "year"),
            ("Tickets are printed on {colour} paper.", "On what kind of paper are tickets printed?", "colour"),
            ("Last summer {number} bands played.", "How many bands played last summer?", "number"),
            ("Between the concerts one can buy {thing}.", "What can one buy between the concerts?", "thing"),
        ),
        (
            ("The research station was set up by {person}.", "Who set up the research station?", "person"),
            ("Its scientists study {animal}.", "What do the scientists study?", "animal"),
            ("Supplies arrive from {place} every month.", "Where do the supplies come from?", "place"),
            ("In {year} it received a {colour} roof.", "What colour is the roof?", "colour"),
            ("Since then {person2} has lived there alone.", "Who has lived there alone?", "person2"),
        ),
    ),
}


def make(rng: random.Random, split: str) -> dict[str, Any]:
    """One passage with a question and the place of its answer."""
    facts = rng.choice(KINDS[split])
    person, person2 = rng.sample(PEOPLE, 2)
    place, place2 = rng.sample(PLACES, 2)
    years = [str(y) for y in rng.sample(range(1820, 2010), 3)]
    number, number2 = (str(n) for n in rng.sample(range(12, 99), 2))
    slots = {
        "person": person, "person2": person2, "place": place, "place2": place2, "year": years[0], "year2": years[1],
        "year3": years[2], "number": number, "number2": number2, "thing": rng.choice(THINGS),
        "animal": rng.choice(ANIMALS), "colour": rng.choice(COLOURS),
    }  # fmt: skip
    asked, question, slot = rng.choice(facts)
    context, start = "", -1
    for sentence, _, _ in facts:
        text = sentence.format(**slots)
        if sentence == asked:
            start = len(context) + len(sentence[: sentence.index("{" + slot + "}")].format(**slots))
        context += text + " "
    answer = slots[slot]
    return {
        "context": context.strip(),
        "question": question.format(**slots),
        "answers": {"text": [answer], "answer_start": [start]},
    }
