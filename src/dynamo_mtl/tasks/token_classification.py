"""A class for every token: named entities, slots, parts of speech."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.errors import DataError
from dynamo_mtl.messages import shortened
from dynamo_mtl.metrics.entities import Entity
from dynamo_mtl.model.adapter import LoraConfig
from dynamo_mtl.model.heads import Head, HeadConfig, TokenHead
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource, TaskView, clean
from dynamo_mtl.tasks.instruction_templates import read_instruction_templates
from dynamo_mtl.tasks.recognition import Guess, Table
from dynamo_mtl.tasks.tag_schemes import (
    BEGINNINGS,
    CONTINUATIONS,
    TAG,
    EntityScheme,
    TaggedToken,
    TagScheme,
    WordTagScheme,
)
from dynamo_mtl.tasks.task import Answer, Example, PublishedHead, Task
from dynamo_mtl.tasks.task_config import TaskConfig

MOST_TAGS = 200


class TokenClassificationConfig(TaskConfig):
    """The classes, as they are named in the data and for users."""

    kinds: list[str] = Field(default=["PER", "ORG", "LOC", "MISC"], min_length=1)
    """What entities can be. The data has spans, or tags in the schemes BIO, IOB1, BIOES or BILOU."""
    tags: list[str] | None = Field(default=None, min_length=2)
    """The tags of words, where every word has one, such as its part of speech; ``kinds`` then do not count."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each token's target that is spread over all classes (Szegedy et al. 2016, arXiv 1512.00567)."""


class TokenClassification(Task):
    """Classifies every token of a text, and reads entities or the tags of words off the classes."""

    type = "token_classification"
    Config = TokenClassificationConfig
    lora = LoraConfig(rank=16, alpha=32.0, target_modules="all-linear")
    all_windows = True
    column_names = {
        "text": ("text", "sentence"),
        "entities": ("entities", "spans"),
        "tokens": ("tokens", "words"),
        "tags": ("ner_tags", "tags", "labels"),
    }
    input_columns = {"text": "text"}
    instruction_templates = read_instruction_templates("token_classification")
    hub_task = "token-classification"
    answer_type = object
    answer_form = "spans"
    answer_parts = {}
    published_head = PublishedHead("AutoModelForTokenClassification", names_labels=True)
    recognition_rank = 1
    config: TokenClassificationConfig

    def __init__(self, name: str, config: TokenClassificationConfig) -> None:
        super().__init__(name, config)
        self.scheme: TagScheme = EntityScheme(config.kinds) if config.tags is None else WordTagScheme(config.tags)
        self.main_metric, self.trivial_name = self.scheme.main_metric, self.scheme.trivial_name
        self.answer_key = self.scheme.key

    @classmethod
    def recognise(cls, table: Table, name: str) -> Guess | None:
        """Recognise a column of spans with a kind, or one of words beside one of tags."""
        for column in table.columns.values():
            first = [
                one for value in column.sample if isinstance(value, list) for one in value if isinstance(one, Mapping)
            ]
            if first and all("start" in one and "end" in one and ("label" in one or "type" in one) for one in first):
                kinds = sorted({str(one.get("label", one.get("type"))) for one in first})
                texts = [c.name for c in table.columns.values() if c.is_text]
                if len(texts) == 1:
                    found = {"text": texts[0], "entities": column.name}
                    return cls.guess(table, name, f"'{column.name}' holds spans of a kind", found, kinds=kinds)
        lists = [c for c in table.columns.values() if c.sample and all(isinstance(v, list) for v in c.sample)]
        for words in (c for c in lists if c.name == table.chosen.get("tokens", c.name)):
            for tags in (c for c in lists if c.name == table.chosen.get("tags", c.name)):
                pairs = zip(words.sample, tags.sample, strict=False)
                same = words is not tags and all(len(one) == len(other) for one, other in pairs)
                written = sorted({str(tag) for value in tags.sample for tag in value}, key=_by_number)
                is_entities = all(TAG.fullmatch(tag) for tag in written)
                is_plain = 2 <= len(written) <= min(MOST_TAGS, _distinct(words.sample) / 2)
                if not same or not written or not (is_entities or is_plain):
                    continue
                classes = {"kinds": sorted({tag[2:] for tag in written if tag != "O"})} if is_entities else {}
                found = {"tokens": words.name, "tags": tags.name}
                why = f"'{tags.name}' has a tag for every word"
                return cls.guess(table, name, why, found, **(classes or {"tags": written}))
        return None

    def output_names(self) -> list[str]:
        """The classes of tokens by number; those of entities as CoNLL-2003 names them."""
        return self.scheme.classes

    def read(self, row: Mapping[str, Any], where: str) -> Example:
        if self.config.tags is not None or any(name in row for name in self.names_of("tokens")):
            text, spans = self._from_tags(row, where)
        else:
            text = self.text_column(row, "text", where)
            spans = self._from_spans(self.column(row, "entities", where), text, where)
        if not text.strip():
            raise DataError(f"{where}: the text of task '{self.name}' is empty", "empty text")
        return Example(text, None, json.dumps(sorted(spans)))

    def input_value(self, row: Mapping[str, Any], column: str) -> Any:
        words = next((row[name] for name in self.names_of("tokens") if isinstance(row.get(name), list)), None)
        return super().input_value(row, column) if words is None else " ".join(map(str, words))

    def _from_spans(self, given: Any, text: str, where: str) -> list[Entity]:
        """Read entities from ``[{"start", "end", "label"}]``, or from that as JSON in a cell of a table."""
        try:
            spans = json.loads(given) if isinstance(given, str) else given
            found = [(s["start"], s["end"], s.get("label", s.get("type"))) for s in spans]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{where}: entities of '{self.name}' should be a list of start, end and label, found {given!r:.80}",
                "entities of another form",
            ) from error
        for start, end, kind in found:
            inside = type(start) is int and type(end) is int and 0 <= start < end <= len(text)
            if not inside or kind not in self.config.kinds:
                raise DataError(
                    f"{where}: the entity {start!r} to {end!r}, {kind!r}, of task '{self.name}' is not in its text, or "
                    f"of no kind of {', '.join(self.config.kinds)}",
                    "an entity that cannot be",
                )
        trimmed = [(*_without_blanks(text, start, end), kind) for start, end, kind in found]
        return [(start, end, kind) for start, end, kind in trimmed if start < end]

    def _from_tags(self, row: Mapping[str, Any], where: str) -> tuple[str, list[Entity]]:
        """Read text and spans from words with tags, given as names or as the numbers of the classes."""
        words, tags = self.column(row, "tokens", where), self.column(row, "tags", where)
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
            counts = f": {len(words)} and {len(tags)}" if isinstance(words, list) and isinstance(tags, list) else ""
            raise DataError(
                f"{where}: task '{self.name}' needs a tag for every word, found other numbers of them{counts}",
                "words and tags do not match",
            )
        text, places, names = "", list[tuple[int, int]](), list[str]()
        for word, tag in zip(words, tags, strict=True):
            name = self._tag(tag)
            if not isinstance(word, str) or name is None:
                raise DataError(
                    f"{where}: tag {tag!r} of task '{self.name}' is none of {shortened(self.scheme.classes, 20)}",
                    "an unknown tag",
                )
            if not word.strip():
                continue  # an empty word is part of no entity
            text += " " if text else ""
            places.append((len(text), len(text) + len(word)))
            names.append(name)
            text += clean(word)
        return text, self.scheme.spans(places, names)

    def _tag(self, given: Any) -> str | None:
        """The tag, from its name or its number; None if it is not one of the task's."""
        classes = self.scheme.classes
        if type(given) is int and str(given) not in classes:
            return classes[given] if 0 <= given < len(classes) else None
        given = str(given)
        if given in classes or self.config.tags is not None:
            return given if given in classes else None
        is_other_scheme = given[:1] in BEGINNINGS + CONTINUATIONS and given[1:2] == "-"
        return given if is_other_scheme and given[2:] in self.config.kinds else None

    def reading_note(self, row: Mapping[str, Any], example: Example) -> str | None:
        if any(name in row for name in self.names_of("tokens")):
            blank = any(not word.strip() for word in self.column(row, "tokens", ""))
            return "an empty word is left out" if blank else None
        given = self.column(row, "entities", "")
        spans = json.loads(given) if isinstance(given, str) else given
        kept = {(start, end) for start, end, _ in json.loads(example.target)}
        trimmed = any((span["start"], span["end"]) not in kept for span in spans)
        return "blanks at the edge of an entity are left out" if trimmed else None

    def head_config(self) -> HeadConfig:
        return HeadConfig("token", labels=len(self.scheme.classes))

    def encode(self, example: Example, source: EncodedSource, route: int) -> EncodedExample:
        before = source.instruction_length
        spans = [(start + before, end + before, kind) for start, end, kind in json.loads(example.target)]
        labels: dict[str, list[int]] = {"class": [], "window": [], "token": []}
        for number, window in enumerate(source.windows):
            for place, (start, end) in enumerate(window.offsets):
                own = self.scheme.class_of(start, end, spans)
                if own is not None:
                    labels["class"].append(own)
                    labels["window"].append(number)
                    labels["token"].append(window.body_start + place)
        return replace(self.unanswered(source, route), labels=labels)

    def lost(self, example: EncodedExample, source: EncodedSource, target: str) -> str | None:
        """Why a span is lost even for a perfect tagger: the classes of its tokens do not give it back."""
        labels, before = example.labels, source.instruction_length
        places = zip(labels["window"], labels["token"], labels["class"], strict=True)
        tagged = {
            source.windows[window].offsets[token - source.windows[window].body_start]: (1.0, number)
            for window, token, number in places
        }
        read = max((end for window in source.windows for _, end in window.offsets), default=0) - before
        wanted: list[Entity] = [(start, end, kind) for start, end, kind in json.loads(target)]
        if self.config.tags is not None:
            return "a word is in no window" if any(end > read for _, end, _ in wanted) else None
        found = {(e["start"], e["end"], e["entity_group"]) for e in self._spans(tagged, source)}
        missed = next((entity for entity in wanted if entity not in found), None)
        if missed is None:
            return None
        start, end, _ = missed
        if any(o != missed and o[0] < end and start < o[1] for o in wanted):
            return "an entity overlaps another one"
        return "an entity is in no window" if end > read else "an entity begins or ends inside of a token"

    def evidence(self, head: Head, hidden: Tensor, view: TaskView) -> tuple[Tensor, Tensor]:
        assert isinstance(head, TokenHead)
        first_window = torch.searchsorted(view.window_rows, view.label_rows)
        places = view.tokens[first_window + view.labels["window"], view.labels["token"]]
        return head(hidden[places]), view.labels["class"]

    def losses(self, head: Head, hidden: Tensor, view: TaskView) -> Tensor:
        smoothing = self.config.label_smoothing if head.training else 0.0
        logits, classes = self.evidence(head, hidden, view)
        return F.cross_entropy(logits, classes, reduction="none", label_smoothing=smoothing)

    def answers(self, head: Head, hidden: Tensor, view: TaskView, sources: Sequence[EncodedSource]) -> list[Answer]:
        assert isinstance(head, TokenHead)
        probabilities = torch.softmax(head(hidden[view.tokens]) / self.calibration.temperature, dim=-1)
        scores, classes = probabilities.max(dim=-1)
        rows = view.window_rows.tolist()
        found: list[dict[tuple[int, int], tuple[float, int]]] = [{} for _ in sources]
        for place, row in enumerate(rows):
            window = sources[row].windows[place - rows.index(row)]
            region = slice(window.body_start, window.body_start + len(window.offsets))
            tagged = zip(window.offsets, scores[place, region].tolist(), classes[place, region].tolist(), strict=True)
            for offsets, score, number in tagged:
                # Where windows overlap, the more confident one decides.
                found[row][offsets] = max(found[row].get(offsets, (0.0, 0)), (score, number))
        return [{self.answer_key: self._spans(own, source)} for own, source in zip(found, sources, strict=True)]

    def _spans(
        self, tagged: Mapping[tuple[int, int], tuple[float, int]], source: EncodedSource
    ) -> list[dict[str, Any]]:
        """Read spans off the classes of tokens; an instruction in front of the text has none."""
        before = source.instruction_length
        tokens = [
            TaggedToken(max(0, start - before), end - before, number, score)
            for (start, end), (score, number) in sorted(tagged.items())
            if end > before
        ]
        return self.scheme.read(tokens, source.body[before:])

    def score(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> dict[str, float]:
        return self.scheme.score(*self._compared(answers, examples))

    def interval(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> tuple[float, float]:
        return self.scheme.interval(*self._compared(answers, examples))

    def _compared(
        self, answers: Sequence[Answer | None], examples: Sequence[Example]
    ) -> tuple[list[list[dict[str, Any]] | None], list[list[Entity]]]:
        found = [None if answer is None else answer.get(self.answer_key) for answer in answers]
        return found, [_spans_of(example) for example in examples]

    def trivial_answers(self, train: Sequence[Example], examples: Sequence[Example]) -> list[Answer]:
        known = [(example.text, _spans_of(example)) for example in train]
        found = self.scheme.trivial([example.text for example in examples], known)
        return [{self.answer_key: spans} for spans in found]


def _by_number(tag: str) -> tuple[int, str]:
    return (int(tag) if tag.isdecimal() else -1, tag)


def _spans_of(example: Example) -> list[Entity]:
    return [(start, end, kind) for start, end, kind in json.loads(example.target)]


def _distinct(lists: Sequence[list[Any]]) -> int:
    return len({str(one) for own in lists for one in own})


def _without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())


def __getattr__(name: str) -> type[Any]:
    """Accept the names of version 0.1.0, to be removed in the next release."""
    now = {"NamedEntities": TokenClassification, "EntityConfig": TokenClassificationConfig}.get(name)
    if now is None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    warnings.warn(f"{name} is now {now.__name__}", DeprecationWarning, stacklevel=2)
    return now
