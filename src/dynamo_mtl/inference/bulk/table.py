"""Answer the rows of tables: in windows, so that memory does not grow, and in their order."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dynamo_mtl.errors import ConfigError, DataError, DynamoError, InputError
from dynamo_mtl.inference.bulk.answer_cells import AnswerCells
from dynamo_mtl.inference.bulk.input_columns import InputColumns
from dynamo_mtl.inference.bulk.input_rows import InputRow

if TYPE_CHECKING:
    from dynamo_mtl.inference.api import DynamoInference

logger = logging.getLogger(__name__)

WINDOW_ROWS = 2048
"""Most rows in memory. Inputs of a window are answered together, in passes over those of similar length."""
WINDOW_CHARACTERS = 2_000_000
"""Most characters of them, after which a window ends."""


@dataclass(frozen=True)
class TableRequest:
    """How the rows of a table are to be answered."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Part of an input → the column that holds it; found by name and by the tasks' data, if not given."""
    tasks: str | Sequence[str] | None = None
    """The tasks that all answer every row, as of a call; one that the router chooses if None."""
    task_hint: str | None = None
    """The task that answers rows that name none."""
    top_k: int | None = None
    probabilities: bool = False
    """Whether to add the probabilities of labels, and of tasks where the router chooses."""
    prefix: str = ""
    """In front of the names of the new columns."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """Decoding settings."""


class TableAnswerer:
    """Answers the rows of one table."""

    def __init__(self, model: DynamoInference, request: TableRequest) -> None:
        """
        Args:
            model: what answers.
            request: how.

        Raises:
            ConfigError: a task, column or setting does not exist.
        """
        self.model, self.request = model, request
        self.manner = model.reader.manner(request.task_hint, request.tasks, request.top_k, request.generation)
        asked = None if self.manner.tasks is None else self.manner.tasks.names
        self.cells = AnswerCells(model.system, asked, request.probabilities, request.prefix)
        self._asked = list(asked or ([request.task_hint] if request.task_hint else model.task_names))
        self._columns: InputColumns | None = None
        self.names: list[str] = []
        """Columns of the table."""

    @property
    def has_begun(self) -> bool:
        """Whether the columns of the inputs are known."""
        return self._columns is not None

    def begin(self, names: Sequence[str], rows: Sequence[InputRow] = ()) -> None:
        """Find the columns of the inputs, again if a later row has further ones.

        Args:
            names: all columns of the table, as far as they are known.
            rows: some of its rows, which say whether two columns for the same part stand in different rows.

        Raises:
            ConfigError: that is not possible, or the router must choose and the model has none.
        """
        self.names = list(names)
        self.cells.check(names)
        values = [row.values for row in rows]
        self._columns = InputColumns(names, self.request.columns, self.model.system, self._asked, values)
        if self.manner.tasks is not None:
            self._columns.of.pop("task_hint", None)
        elif self.manner.task_hint is None and "task_hint" not in self._columns.of:
            self.model.predictor.check_routed()

    def answer(self, rows: Sequence[InputRow]) -> list[dict[str, Any]]:
        """The new cells of some rows, in their order."""
        made: list[Mapping[str, Any] | DynamoError] = []
        inputs: dict[int, dict[str, Any]] = {}
        for place, row in enumerate(rows):
            made.append(row.error or InputError("not answered"))
            if row.error is None:
                assert self._columns is not None
                try:
                    inputs[place] = self._columns.input_of(row.values)
                except InputError as error:
                    made[place] = error
        for place, answer in zip(inputs, self._answers(list(inputs.values())), strict=True):
            made[place] = answer
        return [self.cells.of(one) for one in made]

    def answered(self, rows: Sequence[InputRow]) -> list[dict[str, Any]]:
        """Some rows with their new cells, in their order."""
        return [{**row.values, **cells} for row, cells in zip(rows, self.answer(rows), strict=True)]

    def _answers(self, inputs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | DynamoError]:
        """Answers to inputs together; after a failure to each alone, so that one that fails spoils no other."""
        try:
            return list(self.model.answer_each(inputs, self.manner))
        except Exception as error:
            if len(inputs) == 1 and isinstance(error, DynamoError):
                return [error]
            if len(inputs) == 1:
                logger.exception("an input could not be answered")
                return [InputError(f"could not be answered ({type(error).__name__})")]
            logger.warning("%d inputs failed together (%s); each is tried by itself", len(inputs), error)
            return [answer for one in inputs for answer in self._answers([one])]


def windows(rows: Iterable[InputRow]) -> Iterator[list[InputRow]]:
    """Rows in groups that fit into memory, the same each time."""
    group: list[InputRow] = []
    characters = 0
    for row in rows:
        group.append(row)
        characters += sum(len(value) for value in row.values.values() if isinstance(value, str))
        if len(group) == WINDOW_ROWS or characters >= WINDOW_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def first_readable(
    answerer: TableAnswerer, groups: Iterable[list[InputRow]], names: Sequence[str] | None = None
) -> Iterator[list[InputRow]]:
    """Yield windows of rows, and have the answerer begin before the first that has a row that can be read.

    Args:
        answerer: of the table.
        groups: windows of its rows.
        names: all columns, if they are known; otherwise those of the rows, and of later ones that have more.
    """
    waiting: list[list[InputRow]] = []
    known: dict[str, None] = dict.fromkeys(names or ())
    for group in groups:
        readable = [row for row in group if row.error is None]
        found = dict.fromkeys(name for row in readable for name in row.values) if names is None else {}
        if readable and (not answerer.has_begun or found.keys() - known.keys()):
            known |= found
            answerer.begin(list(known), readable)
        waiting.append(group)
        if answerer.has_begun:
            yield from waiting
            waiting.clear()
    yield from waiting


def answer_table(model: DynamoInference, data: Any, request: TableRequest) -> Any:
    """Answer every row of a data frame, a list of mappings, or another iterable of them.

    Returns:
        A data frame with further columns; a list of rows with further keys; or an iterator over these, which reads a
        window of rows ahead.
    """
    if hasattr(data, "to_dicts"):
        raise ConfigError("data: of a polars frame give the rows (to_dicts()), or to_pandas()")
    if hasattr(data, "columns") and hasattr(data, "to_dict"):
        answerer = TableAnswerer(model, request)
        groups = windows(map(_row, data.to_dict("records")))
        found = [
            cells
            for group in first_readable(answerer, groups, [str(name) for name in data.columns])
            for cells in answerer.answer(group)
        ]
        return data.assign(**{name: [cells[name] for cells in found] for name in answerer.cells.types})
    if isinstance(data, str | Mapping) or not isinstance(data, Iterable):
        raise ConfigError(
            f"data: expected a data frame, or rows as mappings, found {type(data).__name__}; a file is answered by "
            "dynamo predict --input"
        )
    rows = answer_rows(model, data, request)
    return list(rows) if isinstance(data, list | tuple) else rows


def answer_rows(
    model: DynamoInference, rows: Iterable[Mapping[str, Any]], request: TableRequest
) -> Iterator[dict[str, Any]]:
    """Yield each row with its new cells."""
    answerer = TableAnswerer(model, request)
    for group in first_readable(answerer, windows(map(_row, rows))):
        yield from answerer.answered(group)


def _row(given: Any) -> InputRow:
    if isinstance(given, Mapping):
        return InputRow({str(name): value for name, value in given.items()})
    return InputRow({}, DataError(f"a row should be a mapping, found {type(given).__name__}"))
