"""Tasks as Python programs give them: a table in memory or a file, the names of its columns, and settings."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from dynamo_mtl.data.files import named, schema_names
from dynamo_mtl.errors import DataError
from dynamo_mtl.storage import at_home

Data = Any
"""A path, a DataFrame of pandas or polars, a ``datasets.Dataset``, or an iterable of mappings."""


class TaskData:
    """Examples of a task whose type is found out from the data, as ``dynamo init`` does."""

    type: ClassVar[str | None] = None
    """The task type; None to find out."""

    def __init__(self, data: Data, *, validation: Data = None, **settings: Any) -> None:
        """
        Args:
            data: training examples: a path, a DataFrame, a ``datasets.Dataset``, or mappings.
            validation: validation examples in the same form; if None, some of ``data`` are held out.
            settings: settings of the task, as under ``tasks.NAME`` in a configuration.
        """
        self.data, self.validation, self.settings = data, validation, settings
        self.columns: dict[str, str] = {}
        """Our column → the name that it has in the data."""

    def _name(self, **columns: str | None) -> None:
        self.columns = {own: given for own, given in columns.items() if given is not None}


class _TextData(TaskData):
    def __init__(
        self,
        data: Data,
        *,
        text: str | None = None,
        text_pair: str | None = None,
        label: str | None = None,
        validation: Data = None,
        **settings: Any,
    ) -> None:
        """
        Args:
            data: as for ``TaskData``.
            text: name of the column of texts.
            text_pair: name of the column of second texts, where the answer is about two.
            label: name of the column of labels or scores.
            validation: as for ``TaskData``.
            settings: as for ``TaskData``.
        """
        pairs = {} if text_pair is None else {"text_pair": True}
        super().__init__(data, validation=validation, **{**pairs, **settings})
        self._name(**{"text": text, "text_pair": text_pair, self.answer: label})

    answer: ClassVar[str]
    """Our column of what is expected."""


class Classification(_TextData):
    """One of several labels for a text, or for a pair of texts."""

    type, answer = "classification", "label"


class MultiLabel(_TextData):
    """Several labels for a text, or none."""

    type, answer = "multi_label", "labels"


class Regression(_TextData):
    """A score for a text, or for a pair of texts."""

    type, answer = "regression", "score"


class MultipleChoice(TaskData):
    """One of the options that come with a question."""

    type = "multiple_choice"

    def __init__(
        self,
        data: Data,
        *,
        question: str | None = None,
        choices: str | None = None,
        answer: str | None = None,
        context: str | None = None,
        validation: Data = None,
        **settings: Any,
    ) -> None:
        """Like ``TaskData``, with the names of the columns."""
        passage = {} if context is None else {"passage": True}
        super().__init__(data, validation=validation, **{**passage, **settings})
        self._name(text=question, choices=choices, answer=answer, context=context)


class QuestionAnswering(TaskData):
    """The words of a passage that answer a question."""

    type = "qa"

    def __init__(
        self,
        data: Data,
        *,
        question: str | None = None,
        context: str | None = None,
        answers: str | None = None,
        validation: Data = None,
        **settings: Any,
    ) -> None:
        """Like ``TaskData``, with the names of the columns."""
        super().__init__(data, validation=validation, **settings)
        self._name(question=question, context=context, answers=answers)


class TokenClassification(TaskData):
    """Entities in a text, or a tag for each of its words."""

    type = "token_classification"

    def __init__(
        self,
        data: Data,
        *,
        tokens: str | None = None,
        tags: str | None = None,
        validation: Data = None,
        **settings: Any,
    ) -> None:
        """Like ``TaskData``, with the names of the columns."""
        super().__init__(data, validation=validation, **settings)
        self._name(tokens=tokens, tags=tags)


class Summarization(TaskData):
    """A summary of a document."""

    type = "summarization"


class Translation(TaskData):
    """A text in another language."""

    type = "translation"


class CodeGeneration(TaskData):
    """Python code for a description."""

    type = "code_generation"


def stored(data: Data, place: Path) -> Path:
    """The path of data: its own, or ``place``, to which examples from memory are written as JSON lines.

    Raises:
        DataError: it is none of the forms of ``Data``, or has no rows.
    """
    if isinstance(data, str | Path):
        path = at_home(data)
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        return path.absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with place.open("w", encoding="utf-8") as file:
        for row in _rows(data):
            file.write(json.dumps(_plain(row)) + "\n")
            count += 1
    if not count:
        raise DataError(f"{type(data).__name__}: has no rows; a task learns from examples")
    return place


def _rows(data: Data) -> Iterator[Mapping[str, Any]]:
    names = schema_names(getattr(data, "features", None))
    if hasattr(data, "to_dicts"):  # polars
        data = data.to_dicts()
    elif hasattr(data, "to_dict") and hasattr(data, "columns"):  # pandas
        data = data.to_dict("records")
    if not isinstance(data, Iterable) or isinstance(data, Mapping):
        raise DataError(
            f"data should be a path, a DataFrame, a datasets.Dataset or a list of mappings, found {type(data).__name__}"
        )
    for number, row in enumerate(data, start=1):
        if not isinstance(row, Mapping):
            raise DataError(
                f"row {number}: should be a mapping of column names to values, found {type(row).__name__}"
                + ("; of a dictionary of splits give one split" if isinstance(row, str) else "")
            )
        yield named(row, names)


def _plain(value: Any) -> Any:
    """A value as JSON has it: numbers of NumPy become numbers, missing ones become null, and dates become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(own) for key, own in value.items()}
    if hasattr(value, "tolist"):  # arrays and numbers of NumPy
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else _text_or_none(value)


def _text_or_none(value: Any) -> str | None:
    text = str(value)
    return None if text in ("NaT", "<NA>") else text
