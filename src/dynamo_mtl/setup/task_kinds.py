"""What kinds of tables there are, and how the values of one show that a table is of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.messages import shortened
from dynamo_mtl.setup.columns import Column
from dynamo_mtl.tasks.registry import task_types

SENTIMENTS = ({"negative", "positive"}, {"negative", "neutral", "positive"})
LABEL_NAMES = ("label", "labels", "category", "class", "topic", "target", "sentiment", "intent", "y", "gold", "tag")
"""Names that tell the label from other columns of few values."""
LANGUAGES = {
    "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "nl": "Dutch", "pt": "Portuguese",
    "pl": "Polish", "cs": "Czech", "ru": "Russian", "uk": "Ukrainian", "ro": "Romanian", "sv": "Swedish",
    "da": "Danish", "fi": "Finnish", "tr": "Turkish", "zh": "Chinese", "ja": "Japanese", "ar": "Arabic",
}  # fmt: skip
"""Codes of languages, as columns of translations are called."""
NOT_YET = "; no task type does that yet, so nothing is guessed from half of the columns"


@dataclass
class Guess:
    """What a file is taken for."""

    name: str
    type: str
    path: str
    rows: int
    why: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the task, beside its type."""
    notes: list[str] = field(default_factory=list)
    """What else a user should know: other readings, values that were taken as one, rows that will be left out."""
    missing: int = 0
    """Rows without a label."""
    held_out: bool = True
    """Whether validation data must be held out of the file."""


@dataclass(frozen=True)
class Table:
    """A file's columns, and what the user said of them."""

    path: Path
    columns: Mapping[str, Column]
    rows: int
    chosen: Mapping[str, str]
    """Our column → the file's."""

    def named(self, names: Sequence[str]) -> str | None:
        """The only column with one of some names, without case."""
        found = [name for name in self.columns if name.strip().casefold() in names]
        return found[0] if len(found) == 1 else None

    def ask(self, question: str) -> ConfigError:
        """A question that only the user can answer."""
        return ConfigError(f"{self.path}: {question}")


def _columns(kind: str, found: Mapping[str, str]) -> dict[str, Any]:
    """The setting ``columns`` for what the type would not find by itself."""
    known = {**task_types()[kind].column_names, **task_types()[kind].optional_columns}
    own = {mine: given for mine, given in found.items() if given not in known[mine]}
    return {"columns": own} if own else {}


def _entities(table: Table, name: str) -> Guess | None:
    """Spans with a kind, or words with a tag each."""
    for column in table.columns.values():
        first = [one for value in column.sample if isinstance(value, list) for one in value if isinstance(one, Mapping)]
        if first and all("start" in one and "end" in one and ("label" in one or "type" in one) for one in first):
            kinds = sorted({str(one.get("label", one.get("type"))) for one in first})
            texts = [c.name for c in table.columns.values() if c.is_text]
            if len(texts) == 1:
                own = {**_columns("ner", {"text": texts[0], "entities": column.name}), "kinds": kinds}
                return Guess(name, "ner", str(table.path), table.rows, f"'{column.name}' holds spans of a kind", own)
    lists = [c for c in table.columns.values() if c.sample and all(isinstance(v, list) for v in c.sample)]
    for words in lists:
        for tags in lists:
            pairs = zip(words.sample, tags.sample, strict=False)
            same = words is not tags and all(len(one) == len(other) for one, other in pairs)
            written = sorted({str(tag) for value in tags.sample for tag in value})
            if same and written and all(re.fullmatch(r"O|[BI]-.+", tag) for tag in written):
                kinds = sorted({tag[2:] for tag in written if tag != "O"})
                own = {**_columns("ner", {"tokens": words.name, "tags": tags.name}), "kinds": kinds}
                return Guess(name, "ner", str(table.path), table.rows, f"'{tags.name}' has a tag for every word", own)
    return None


def _questions(table: Table, name: str) -> Guess | None:
    """A question, a passage, and an answer that stands in it."""
    given = {own: table.chosen.get(own) or table.named(names) for own, names in task_types()["qa"].column_names.items()}
    if not all(given.values()):
        given = next(_answered(table), {})
    if not given:
        return None
    found = {own: str(column) for own, column in given.items()}
    start = table.named(task_types()["qa"].optional_columns["answer_start"])
    if start is not None:
        found["answer_start"] = start
    why = f"the answers of '{found['answers']}' stand in '{found['context']}'"
    return Guess(name, "qa", str(table.path), table.rows, why, _columns("qa", found))


def _answered(table: Table) -> Iterator[dict[str, str | None]]:
    texts = [c for c in table.columns.values() if not c.is_nested and c.sample and len(c.sample) == len(_first(table))]
    for context in texts:
        for answer in texts:
            if answer is context or answer.mean_characters * 2 > context.mean_characters:
                continue
            pairs = list(zip(answer.sample, context.sample, strict=True))
            if sum(str(a).strip() in str(c) for a, c in pairs) < 0.9 * len(pairs):
                continue
            for question in texts:
                if question not in (answer, context) and question.share(r".*\?") > 0.5:
                    yield {"question": question.name, "context": context.name, "answers": answer.name}


def _first(table: Table) -> list[Any]:
    return max((column.sample for column in table.columns.values()), key=len)


def _code(table: Table, name: str) -> Guess | None:
    """A description, and Python."""
    code = [c for c in table.columns.values() if c.is_code]
    texts = [c for c in table.columns.values() if c.is_text and c not in code]
    names = task_types()["code_generation"].column_names
    named = {own: table.named(known) for own, known in names.items()}
    if len(code) == 1 and len(texts) == 1:
        found = dict(zip(names, (texts[0].name, code[0].name), strict=True))
        why = f"'{code[0].name}' holds Python"
    elif all(named.values()) and not any(table.columns[str(column)].is_label for column in named.values()):
        found = {own: str(column) for own, column in named.items()}
        why = f"it has {' and '.join(found.values())}"
    else:
        return None
    settings = _columns("code_generation", found)
    return Guess(name, "code_generation", str(table.path), table.rows, why, settings)


def _labels(table: Table, name: str) -> Guess | None:
    """A text, and one of few labels."""
    _refuse_kinds_to_come(table)
    labels = [column for column in table.columns.values() if column.is_label]
    if not labels and "label" not in table.chosen:
        return None
    chosen = table.chosen.get("label") or _only(labels) or table.named(LABEL_NAMES)
    if chosen is None or (chosen not in table.chosen.values() and chosen not in [c.name for c in labels]):
        each = " or ".join(f"{c.name} ({shortened(sorted(c.counts), 4)})" for c in labels)
        raise table.ask(
            f"which column is the label, {each}? say --column {name}.label=NAME, and name a file twice, with a copy "
            "under another name, to learn several"
        )
    text = table.chosen.get("text") or _text(table, chosen, name)
    guess = _classification(table, name, text, chosen)
    others = [column.name for column in labels if column.name != chosen]
    if others:
        guess.notes.append(f"'{chosen}' is taken as the label; it could also be {', '.join(others)}")
    return guess


def _only(columns: Sequence[Column]) -> str | None:
    return columns[0].name if len(columns) == 1 else None


def _text(table: Table, label: str, name: str) -> str:
    """The column of texts beside a label."""
    rest = [c for c in table.columns.values() if c.name != label and not c.is_nested and c.filled]
    texts = [column for column in rest if column.is_text]
    if len(texts) > 1:
        each = " and ".join(f"'{column.name}'" for column in texts)
        raise table.ask(
            f"{each} hold texts beside the label '{label}': if it is about several together, as a premise and a "
            f"hypothesis, no task type reads pairs yet; if it is about one, say --column {name}.text=NAME"
        )
    if texts:
        return texts[0].name
    short = [c for c in rest if not (c.is_address or c.is_date or c.is_number or c.is_identifier or c.is_label)]
    known = table.named(task_types()["classification"].column_names["text"])
    if known is None and not short:
        raise table.ask(f"no column holds texts beside the label '{label}'; say --column {name}.text=NAME")
    return known or max(short, key=lambda column: column.words).name


def _refuse_kinds_to_come(table: Table) -> None:
    """Say what a table is where no task type fits it."""
    if "label" in table.chosen:
        return
    columns = table.columns.values()
    lists = [c for c in columns if c.sample and all(isinstance(v, list) for v in c.sample)]
    choices = [c for c in lists if all(isinstance(one, str) for value in c.sample for one in value)]
    numbers = [c for c in columns if not c.is_nested and c.is_number]
    numbered = [c for c in columns if re.fullmatch(r"(choice|option|ending|answer)_?[0-9A-Ea-e]", c.name)]
    if (choices and numbers and any(c.is_text for c in columns)) or len(numbered) > 1:
        raise table.ask(
            f"seems to ask for a choice among given options ({shortened(c.name for c in choices or numbered)}){NOT_YET}"
        )
    if choices:
        raise table.ask(f"'{choices[0].name}' holds several labels of a row{NOT_YET}")
    several = [c for c in columns if not c.is_nested and not c.is_text and c.parts()]
    if several:
        raise table.ask(
            f"'{several[0].name}' holds several labels of a row, such as {shortened(several[0].parts(), 4)}{NOT_YET}"
        )
    flags = [c for c in columns if set(c.folded) == {"0", "1"} or set(c.folded) == {"true", "false"}]
    if len(flags) > 2 and table.named(LABEL_NAMES) is None:
        raise table.ask(f"{shortened(c.name for c in flags)} are each yes or no: several labels of a row{NOT_YET}")
    scores = [c for c in columns if c.is_score]
    if scores and not any(c.is_label for c in columns) and any(c.is_text for c in columns):
        raise table.ask(f"'{scores[0].name}' holds scores{NOT_YET}")


def _classification(table: Table, name: str, text: str, label: str) -> Guess:
    column = table.columns[label]
    labels = [spellings[0] for spellings in column.folded.values()]
    labels.sort(key=lambda one: (not one.isdecimal(), int(one) if one.isdecimal() else 0, one))
    is_numbers = labels == [str(number) for number in range(len(labels))]
    is_sentiment = {one.casefold() for one in labels} in SENTIMENTS or (is_numbers and "sentiment" in name.lower())
    kind = "sentiment" if is_sentiment and (not is_numbers or len(labels) == 2) else "classification"
    settings = _columns(kind, {"text": text, "label": label})
    if is_numbers and kind == "classification":
        settings["labels"] = [f"class {number}" for number in labels]
    elif not is_numbers:
        settings["labels"] = labels
    why = f"'{label}' has {len(labels)} values that come again, beside the texts of '{text}'"
    guess = Guess(name, kind, str(table.path), table.rows, why, settings, missing=column.empty)
    merged = [" and ".join(map(repr, spellings)) for spellings in column.folded.values() if len(spellings) > 1]
    if merged:
        guess.notes.append(f"one label in several spellings: {shortened(merged, 5)}")
    if column.empty:
        guess.notes.append(f"{column.empty} rows have no label and are left out (data.bad_rows: skip)")
    unused = [one for one in table.columns if one not in (text, label)]
    if unused:
        guess.notes.append(f"not used: {shortened(unused, 6)}")
    return guess


def _texts(table: Table, name: str) -> Guess | None:
    """Two columns of texts: a translation or a summary, where their names or lengths say so."""
    codes = {c.strip().casefold(): c for c in table.columns if c.strip().casefold() in (*LANGUAGES, "en")}
    if len(codes) == 2 and "en" in codes:
        target = next(code for code in codes if code != "en")
        settings: dict[str, Any] = {"target_code": target, "target_language": LANGUAGES[target]}
        if codes != {"en": "en", target: target}:
            settings["columns"] = {"source": codes["en"], "target": codes[target]}
        return Guess(
            name, "translation", str(table.path), table.rows, f"columns of English and {LANGUAGES[target]}", settings
        )
    for kind in ("summarization", "translation"):
        names = task_types()[kind].column_names
        found = {own: table.chosen.get(own) or table.named(known) for own, known in names.items()}
        chosen = {own: column for own, column in found.items() if column is not None}
        if len(chosen) == len(names) and all(
            table.columns[c].is_text or table.columns[c].words for c in chosen.values()
        ):
            source, target = (table.columns[column] for column in chosen.values())
            if not (source.is_number or target.is_number):
                why = f"it has {' and '.join(chosen.values())}"
                return Guess(name, kind, str(table.path), table.rows, why, _columns(kind, chosen))
    return None


KINDS = (_entities, _questions, _code, _labels, _texts)
"""In the order in which they are looked for."""
