"""What the classes of tokens mean: entities of several words, or a tag for every word."""

from __future__ import annotations

import abc
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynamo_mtl.metrics.bootstrap import ratio_interval
from dynamo_mtl.metrics.entities import Entity, entity_interval, entity_scores

OUTSIDE = 0
"""Class of tokens outside all entities. Each kind has two more classes: for its first token and for others (BIO)."""
BEGINNINGS, CONTINUATIONS = "BSU", "IELM"
"""Prefixes of tags in the schemes that are read: BIO, IOB1, BIOES and BILOU."""
TAG = re.compile(rf"O|[{BEGINNINGS}{CONTINUATIONS}]-.+")

WORD = re.compile(r"\w+|[^\w\s]")
"""A word of a text that has a tag: a run of letters and digits, or any other sign."""


@dataclass(frozen=True)
class TaggedToken:
    """The class of a token, and where it stands in the text."""

    start: int
    end: int
    number: int
    score: float


Span = dict[str, Any]
"""A stretch of a text with what it is, as a user reads it."""


class TagScheme(abc.ABC):
    """How spans of a text become classes of its tokens, and classes become spans."""

    classes: list[str]
    """Names of the classes, by number."""
    key: str
    """Key of the spans in an answer."""
    main_metric: str
    trivial_name: str

    @abc.abstractmethod
    def spans(self, words: Sequence[tuple[int, int]], tags: Sequence[str]) -> list[Entity]:
        """Spans of a text from the tags of its words, which stand at these characters."""

    @abc.abstractmethod
    def class_of(self, start: int, end: int, spans: Iterable[Entity]) -> int | None:
        """Class of the token with these characters; None if it has none."""

    @abc.abstractmethod
    def read(self, tokens: Iterable[TaggedToken], text: str) -> list[Span]:
        """Read spans off the classes of tokens, which are in order."""

    @abc.abstractmethod
    def score(self, found: Sequence[Sequence[Span] | None], expected: Sequence[Sequence[Entity]]) -> dict[str, float]:
        """Metrics of the spans of many texts."""

    @abc.abstractmethod
    def interval(
        self, found: Sequence[Sequence[Span] | None], expected: Sequence[Sequence[Entity]]
    ) -> tuple[float, float]:
        """95 % interval of the main metric over resamples of the texts."""

    @abc.abstractmethod
    def trivial(self, texts: Sequence[str], known: Sequence[tuple[str, Sequence[Entity]]]) -> list[list[Span]]:
        """Spans of texts by what the words of known texts are."""


class EntityScheme(TagScheme):
    """Entities, as in CoNLL-2003. Other schemes of tags are read as what they say of entities."""

    key = "entities"
    main_metric = "f1"
    trivial_name = "names of the training data, wherever they stand"

    def __init__(self, kinds: Sequence[str]) -> None:
        self.kinds = list(kinds)
        self.classes = ["O", *(f"{place}-{kind}" for kind in kinds for place in "BI")]

    def spans(self, words: Sequence[tuple[int, int]], tags: Sequence[str]) -> list[Entity]:
        entities: list[Entity] = []
        last: str | None = None
        for (start, end), tag in zip(words, tags, strict=True):
            kind = None if tag == "O" else tag[2:]
            if kind is not None and tag[0] in CONTINUATIONS and kind == last:
                entities[-1] = (entities[-1][0], end, kind)
            elif kind is not None:
                entities.append((start, end, kind))
            last = kind
        return entities

    def class_of(self, start: int, end: int, spans: Iterable[Entity]) -> int:
        for first, last, kind in spans:
            if first < end and start < last:
                # A token may begin with the blank before its word.
                return 1 + 2 * self.kinds.index(kind) + int(start > first)
        return OUTSIDE

    def read(self, tokens: Iterable[TaggedToken], text: str) -> list[Span]:
        entities: list[Span] = []
        last = OUTSIDE
        for token in tokens:
            kind = (token.number - 1) // 2
            if token.number != OUTSIDE:
                if token.number % 2 == 0 and last != OUTSIDE and (last - 1) // 2 == kind:
                    entities[-1]["end"] = token.end
                    entities[-1]["score"] = min(entities[-1]["score"], token.score)
                else:
                    piece = text[token.start : token.end]
                    start = token.start + len(piece) - len(piece.lstrip())
                    entities.append(
                        {"entity_group": self.kinds[kind], "score": token.score, "start": start, "end": token.end}
                    )
            last = token.number
        return [{**entity, "word": text[entity["start"] : entity["end"]]} for entity in entities]

    def score(self, found: Sequence[Sequence[Span] | None], expected: Sequence[Sequence[Entity]]) -> dict[str, float]:
        return entity_scores(self._entities(found), expected)

    def interval(
        self, found: Sequence[Sequence[Span] | None], expected: Sequence[Sequence[Entity]]
    ) -> tuple[float, float]:
        return entity_interval(self._entities(found), expected)

    def _entities(self, found: Sequence[Sequence[Span] | None]) -> list[list[Entity]]:
        return [[(e["start"], e["end"], e["entity_group"]) for e in own or ()] for own in found]

    def trivial(self, texts: Sequence[str], known: Sequence[tuple[str, Sequence[Entity]]]) -> list[list[Span]]:
        names = {text[start:end]: kind for text, entities in known for start, end, kind in entities}
        longest = sorted(names, key=len, reverse=True)
        pattern = re.compile(r"\b(" + "|".join(map(re.escape, longest)) + r")\b") if names else None
        return [
            [
                {"entity_group": names[m[0]], "score": 1.0, "start": m.start(), "end": m.end(), "word": m[0]}
                for m in (pattern.finditer(text) if pattern else ())
            ]
            for text in texts
        ]


class WordTagScheme(TagScheme):
    """A tag for every word, such as its part of speech."""

    key = "tags"
    main_metric = "accuracy"
    trivial_name = "the commonest tag of each word in the training data"

    def __init__(self, tags: Sequence[str]) -> None:
        self.classes = list(tags)

    def spans(self, words: Sequence[tuple[int, int]], tags: Sequence[str]) -> list[Entity]:
        return [(start, end, tag) for (start, end), tag in zip(words, tags, strict=True)]

    def class_of(self, start: int, end: int, spans: Iterable[Entity]) -> int | None:
        return next((self.classes.index(tag) for first, last, tag in spans if first < end and start < last), None)

    def read(self, tokens: Iterable[TaggedToken], text: str) -> list[Span]:
        """Every run of letters and digits is a word, and so is every other sign. Its first token decides."""
        first: dict[int, TaggedToken] = {}
        for token in tokens:
            for place in range(token.start, token.end):
                first.setdefault(place, token)
        found = [(match, first.get(match.start())) for match in WORD.finditer(text)]
        return [
            {"tag": self.classes[token.number], "score": token.score, "start": match.start(), "end": match.end(),
             "word": match[0]}
            for match, token in found if token is not None
        ]  # fmt: skip

    def score(self, found: Sequence[Sequence[Span] | None], expected: Sequence[Sequence[Entity]]) -> dict[str, float]:
        right, words = self._counts(found, expected).sum(axis=0).tolist()
        return {"accuracy": right / max(1, words)}

    def interval(
        self, found: Sequence[Sequence[Span] | None], expected: Sequence[Sequence[Entity]]
    ) -> tuple[float, float]:
        return ratio_interval(self._counts(found, expected))

    def _counts(self, found: Sequence[Sequence[Span] | None], expected: Sequence[Sequence[Entity]]) -> np.ndarray:
        """``(texts, 2)`` words that are right, and all words. What stands at a word's first character is its tag."""
        rows: list[tuple[int, int]] = []
        for own, words in zip(found, expected, strict=True):
            tags = {place: span["tag"] for span in own or () for place in range(span["start"], span["end"])}
            rows.append((sum(tags.get(start) == tag for start, _, tag in words), len(words)))
        return np.array(rows)

    def trivial(self, texts: Sequence[str], known: Sequence[tuple[str, Sequence[Entity]]]) -> list[list[Span]]:
        counts: dict[str, Counter[str]] = {}
        for text, words in known:
            for start, end, tag in words:
                counts.setdefault(text[start:end].casefold(), Counter())[tag] += 1
        total = sum(counts.values(), Counter[str]())
        commonest = total.most_common(1)[0][0] if total else self.classes[0]
        return [
            [
                {
                    "tag": counts[word].most_common(1)[0][0] if word in counts else commonest,
                    "score": 1.0, "start": match.start(), "end": match.end(), "word": match[0],
                }
                for match in WORD.finditer(text)
                for word in (match[0].casefold(),)
            ]
            for text in texts
        ]  # fmt: skip
