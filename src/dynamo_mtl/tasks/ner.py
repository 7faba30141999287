"""Named entities: stretches of a text that name somebody or something, each with its kind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.errors import DataError
from dynamo_mtl.metrics.entities import Entity, entity_interval, entity_scores
from dynamo_mtl.model.adapter import LoraConfig
from dynamo_mtl.model.heads import Head, HeadConfig, TokenHead
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource, TaskView, clean
from dynamo_mtl.tasks.instruction_templates import read_instruction_templates
from dynamo_mtl.tasks.recognition import Guess, Table
from dynamo_mtl.tasks.task import Answer, Example, PublishedHead, Task
from dynamo_mtl.tasks.task_config import TaskConfig

OUTSIDE = 0
"""Class of tokens outside all entities. Each kind has two more classes: for its first token and for others (BIO)."""


class EntityConfig(TaskConfig):
    """The kinds of entities, as they are named in the data and for users."""

    kinds: list[str] = Field(default=["PER", "ORG", "LOC", "MISC"], min_length=1)
    """What entities can be."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each token's target that is spread over all classes (Szegedy et al. 2016, arXiv 1512.00567)."""


class NamedEntities(Task):
    """Classifies every token of a text and reads entities off the classes, as characters of the text."""

    type = "ner"
    Config = EntityConfig
    lora = LoraConfig(rank=16, alpha=32.0, target_modules="all-linear")
    all_windows = True
    column_names = {
        "text": ("text", "sentence"),
        "entities": ("entities", "spans"),
        "tokens": ("tokens", "words"),
        "tags": ("ner_tags", "tags", "labels"),
    }
    instruction_templates = read_instruction_templates("ner")
    main_metric = "f1"
    trivial_name = "names of the training data, wherever they stand"
    hub_task = "token-classification"
    answer_key = "entities"
    answer_form = "spans"
    published_head = PublishedHead("AutoModelForTokenClassification", names_labels=True)
    recognition_rank = 1
    config: EntityConfig

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
        for words in lists:
            for tags in lists:
                pairs = zip(words.sample, tags.sample, strict=False)
                same = words is not tags and all(len(one) == len(other) for one, other in pairs)
                written = sorted({str(tag) for value in tags.sample for tag in value})
                if same and written and all(re.fullmatch(r"O|[BI]-.+", tag) for tag in written):
                    kinds = sorted({tag[2:] for tag in written if tag != "O"})
                    found = {"tokens": words.name, "tags": tags.name}
                    return cls.guess(table, name, f"'{tags.name}' has a tag for every word", found, kinds=kinds)
        return None

    def output_names(self) -> list[str]:
        """The classes of tokens by number, as CoNLL-2003 names them."""
        return ["O", *(f"{place}-{kind}" for kind in self.config.kinds for place in "BI")]

    def read(self, row: Mapping[str, Any], where: str) -> Example:
        if any(name in row for name in self.names_of("tokens")):
            text, entities = self._from_tags(row, where)
        else:
            text = self.text_column(row, "text", where)
            entities = self._from_spans(self.column(row, "entities", where), text, where)
        if not text.strip():
            raise DataError(f"{where}: the text of task '{self.name}' is empty", "empty text")
        return Example(text, None, json.dumps(sorted(entities)))

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
        """Read text and entities from words with BIO tags, given as names or as the numbers of CoNLL-2003.

        The numbers stand for O, B-PER, I-PER, B-ORG, …
        """
        words, tags = self.column(row, "tokens", where), self.column(row, "tags", where)
        kinds, names = self.config.kinds, self.output_names()
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
            raise DataError(f"{where}: task '{self.name}' needs a tag for every word", "words and tags do not match")
        entities: list[Entity] = []
        text = ""
        for word, tag in zip(words, tags, strict=True):
            number = tag if isinstance(tag, int) else names.index(tag) if tag in names else -1
            if not isinstance(word, str) or not 0 <= number < len(names):
                raise DataError(
                    f"{where}: tag {tag!r} of task '{self.name}' is none of {', '.join(names)}", "an unknown tag"
                )
            if not word.strip():
                continue  # an empty word is part of no entity
            text += " " if text else ""
            start, text = len(text), text + clean(word)
            kind, begins = kinds[(number - 1) // 2], number % 2 == 1
            goes_on = bool(entities) and entities[-1][1] == start - 1 and entities[-1][2] == kind
            if number and (begins or not goes_on):
                entities.append((start, len(text), kind))
            elif number:
                entities[-1] = (entities[-1][0], len(text), kind)
        return text, entities

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
        return HeadConfig("token", labels=len(self.output_names()))

    def encode(self, example: Example, source: EncodedSource, route: int) -> EncodedExample:
        entities = [
            (s + source.instruction_length, e + source.instruction_length, kind)
            for s, e, kind in json.loads(example.target)
        ]
        labels: dict[str, list[int]] = {"class": [], "window": [], "token": []}
        for number, window in enumerate(source.windows):
            for place, (start, end) in enumerate(window.offsets):
                labels["class"].append(self._class(start, end, entities))
                labels["window"].append(number)
                labels["token"].append(window.body_start + place)
        return replace(self.unanswered(source, route), labels=labels)

    def lost(self, example: EncodedExample, source: EncodedSource, target: str) -> str | None:
        """Why an entity is lost even for a perfect tagger: the classes of its tokens do not give it back."""
        offsets = [offset for window in source.windows for offset in window.offsets]
        tagged = {offset: (1.0, number) for offset, number in zip(offsets, example.labels["class"], strict=True)}
        found = {(e["start"], e["end"], e["entity_group"]) for e in self._entities(tagged, source)}
        wanted = [(start, end, kind) for start, end, kind in json.loads(target)]
        missed = next((entity for entity in wanted if entity not in found), None)
        if missed is None:
            return None
        start, end, _ = missed
        if any(o != missed and o[0] < end and start < o[1] for o in wanted):
            return "an entity overlaps another one"
        read = max((last for _, last in offsets), default=0) - source.instruction_length
        return "an entity is in no window" if end > read else "an entity begins or ends inside of a token"

    def _class(self, start: int, end: int, entities: Iterable[Entity]) -> int:
        """Class of the token with these characters."""
        for first, last, kind in entities:
            if first < end and start < last:
                # A token may begin with the blank before its word.
                return 1 + 2 * self.config.kinds.index(kind) + int(start > first)
        return OUTSIDE

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
        return [{"entities": self._entities(own, source)} for own, source in zip(found, sources, strict=True)]

    def _entities(
        self, tagged: Mapping[tuple[int, int], tuple[float, int]], source: EncodedSource
    ) -> list[dict[str, Any]]:
        """Read entities off the classes of tokens; an instruction in front of the text has none."""
        body, before = source.body, source.instruction_length
        entities: list[dict[str, Any]] = []
        last = OUTSIDE
        for (start, end), (score, number) in sorted(tagged.items()):
            if end <= before:
                continue
            kind = (number - 1) // 2
            if number != OUTSIDE:
                goes_on = number % 2 == 0 and last != OUTSIDE and (last - 1) // 2 == kind
                if goes_on:
                    entities[-1]["end"] = end
                    entities[-1]["score"] = min(entities[-1]["score"], score)
                else:
                    blanks = len(body[start:end]) - len(body[start:end].lstrip())
                    entity = {"entity_group": self.config.kinds[kind], "score": score}
                    entities.append({**entity, "start": start + blanks, "end": end})
            last = number
        return [
            {**e, "word": body[e["start"] : e["end"]], "start": e["start"] - before, "end": e["end"] - before}
            for e in entities
        ]

    def score(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> dict[str, float]:
        return entity_scores(*self._compared(answers, examples))

    def interval(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> tuple[float, float]:
        return entity_interval(*self._compared(answers, examples))

    def _compared(
        self, answers: Sequence[Answer | None], examples: Sequence[Example]
    ) -> tuple[list[list[Entity]], list[list[Entity]]]:
        predicted = [
            [(e["start"], e["end"], e["entity_group"]) for e in (answer or {}).get("entities", [])]
            for answer in answers
        ]
        return predicted, [[(s, e, k) for s, e, k in json.loads(x.target)] for x in examples]

    def trivial_answers(self, train: Sequence[Example], examples: Sequence[Example]) -> list[Answer]:
        names = {e.text[s:t]: kind for e in train for s, t, kind in json.loads(e.target)}
        longest = sorted(names, key=len, reverse=True)
        pattern = re.compile(r"\b(" + "|".join(map(re.escape, longest)) + r")\b") if names else None
        return [
            {
                "entities": [
                    {"entity_group": names[m[0]], "score": 1.0, "start": m.start(), "end": m.end(), "word": m[0]}
                    for m in (pattern.finditer(example.text) if pattern else ())
                ]
            }
            for example in examples
        ]


def _without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())
