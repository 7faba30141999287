"""Find the texts and the labels among the columns of a user's own table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynamo_mtl.data.columns import REPEATED, Column
from dynamo_mtl.messages import shortened
from dynamo_mtl.tasks.recognition import Table
from dynamo_mtl.tasks.text_task import TEXT_NAMES, TextTask

LABEL_NAMES = ("label", "labels", "category", "class", "topic", "target", "sentiment", "intent", "y", "gold", "tag")
"""Names that tell the label from other columns of few values."""


@dataclass(frozen=True)
class LabelLists:
    """Where a table has several labels of a row."""

    labels: list[str]
    column: str | None
    """The column of lists; None if each label has a column of its own."""
    columns: list[str]
    """All columns that say something about labels."""
    why: str


def find_label_lists(table: Table) -> LabelLists | None:
    """Find several labels of a row: a column of lists, of names with marks between them, or columns of 0 and 1.

    None where the table has one label a row, or none.
    """
    if "label" in table.chosen or not any(column.is_text for column in table.columns.values()):
        return None
    columns = [c for c in table.columns.values() if table.chosen.get("labels", c.name) == c.name]
    for column in columns:
        lists = [value for value in column.sample if isinstance(value, list)]
        names = sorted({one for value in lists for one in value if isinstance(one, str)})
        is_named = "labels" in table.chosen or 2 <= len(names) <= REPEATED * len(lists) + 2
        if lists and len(lists) == len(column.sample) and is_named:
            return LabelLists(names, column.name, [column.name], f"'{column.name}' holds lists of {len(names)} labels")
    for column in columns:
        if not column.is_nested and not column.is_text and (names := column.parts()):
            why = f"'{column.name}' holds several of {len(names)} labels in one cell"
            return LabelLists(names, column.name, [column.name], why)
    flags = [c.name for c in columns if set(c.folded) == {"0", "1"} or set(c.folded) == {"true", "false"}]
    if len(flags) > 2 and table.named(LABEL_NAMES) is None:
        return LabelLists(flags, None, flags, f"{shortened(flags)} are each yes or no")
    return None


def only(columns: Sequence[Column]) -> str | None:
    """The name of the only column; None if there are several or none."""
    return columns[0].name if len(columns) == 1 else None


def texts_beside(table: Table, label: str, name: str, others: Sequence[str] = ()) -> list[str]:
    """Find the column of texts beside a label, or the two columns of pairs."""
    if "text" in table.chosen:
        return [table.chosen[own] for own in ("text", "text_pair") if own in table.chosen]
    rest = [c for c in table.columns.values() if c.name not in (label, *others) and not c.is_nested and c.filled]
    texts = [column for column in rest if column.is_text]
    if len(texts) > 2:
        each = " and ".join(f"'{column.name}'" for column in texts)
        raise table.ask(
            f"{each} hold texts beside the label '{label}': say --column {name}.text=NAME for the one that it is "
            f"about, and --column {name}.text_pair=NAME for the second one if it is about two"
        )
    pair = table.named(TextTask.optional_columns["text_pair"])
    if len(texts) == 1 and pair not in (None, label, texts[0].name, *others):
        texts.append(table.columns[str(pair)])  # such as a target that many texts share
    if texts:
        second = TextTask.optional_columns["text_pair"]
        return [column.name for column in sorted(texts, key=lambda column: column.name.strip().casefold() in second)]
    short = [c for c in rest if not (c.is_address or c.is_date or c.is_number or c.is_identifier or c.is_label)]
    known = table.named(TEXT_NAMES)
    if known is None and not short:
        raise table.ask(f"no column holds texts beside the label '{label}'; say --column {name}.text=NAME")
    return [known or max(short, key=lambda column: column.words).name]
