"""Defines ``Task``, the contract of every task type.

A task owns its data columns, target encoding, head, loss, decoding and post-processing, its choice of metrics and its
instructions. A new type is one new file in this folder with a subclass of ``Task`` that sets ``type``; ``registry.py``
discovers it.
"""

from __future__ import annotations

import abc
import functools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from dynamo_mtl.errors import ConfigError, DataError
from dynamo_mtl.messages import did_you_mean
from dynamo_mtl.metrics.bootstrap import bootstrap_interval
from dynamo_mtl.model.adapter import LoraConfig
from dynamo_mtl.model.calibration import AnswerCalibration, fit_temperature
from dynamo_mtl.model.heads import Head, HeadConfig
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource, TaskView, clean
from dynamo_mtl.tasks.instruction_templates import InstructionTemplates
from dynamo_mtl.tasks.recognition import Guess, Table
from dynamo_mtl.tasks.task_config import TaskConfig


@dataclass(frozen=True)
class Example:
    """A validated row of data: a source and its expected answer, before any encoding."""

    text: str
    context: str | None
    target: str
    """The expected answer as text; JSON if it has several parts."""
    choices: list[str] | None = None
    """The options of an input that comes with some."""


@dataclass(frozen=True)
class PublishedHead:
    """A model class of ``transformers`` whose head computes what ours does."""

    architecture: str
    """Its ``Auto`` class."""
    names_labels: bool
    """Whether its configuration names the head's outputs."""
    problem_type: str | None = None
    """What its configuration says of the labels, for a head over whole texts."""


Answer = dict[str, Any]
"""What a task answers, with the keys that a user reads."""


class Task(abc.ABC):
    """One named task of some type."""

    type: ClassVar[str]
    Config: ClassVar[type[TaskConfig]] = TaskConfig
    lora: ClassVar[LoraConfig]
    """The adapter that suits the type where none is configured."""
    needs_context: bool = False
    """Whether an input has a context: a passage, or the second text of a pair."""
    missing_context: ClassVar[str] = "answers from a passage, and there is none; give it as context"
    """What is said where it has none."""
    takes_choices: ClassVar[bool] = False
    """Whether an input comes with the options to choose from. Only such inputs are sent to such tasks."""
    all_windows: ClassVar[bool] = False
    """Whether an answer uses all windows of a long input, or only the first."""
    least_words: ClassVar[int] = 1
    """Fewest words of an input that still is one of this type; the router learns no shorter parts of longer ones."""
    column_names: ClassVar[Mapping[str, tuple[str, ...]]]
    """Our column → the names that it has in published data; messages use the first."""
    optional_columns: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """The same for columns that a row may lack."""
    input_columns: ClassVar[Mapping[str, str]] = {"text": "text", "text_pair": "context"}
    """Our column → the part of an input that it is: ``text``, ``context`` or ``choices``."""
    tunes_answers: ClassVar[bool] = False
    """Whether ``tune`` fits anything."""
    instruction_templates: ClassVar[InstructionTemplates]
    main_metric: str
    trivial_name: str
    """What ``trivial_answers`` does, in a few words, for tables of results."""
    hub_task: ClassVar[str] = "other"
    """The hub's name of this kind of task, for model cards."""
    answer_key: str = "label"
    """Key of the main value of an answer."""
    answer_type: type = str
    """Type of the main value; ``object`` if it is a list or a mapping."""
    answer_parts: Mapping[str, type] = {"score": float}
    """What an answer has beside its main value and probabilities, for tables: key → type of the value."""
    decides: Literal["label", "labels", "level", "value", "choice"] | None = None
    """What an answer decides: one label of several, each label by itself, one of ordered levels, a number, or one of
    the choices in the input. None for spans and texts."""
    answer_form: ClassVar[Literal["text", "code", "span", "spans"]] = "text"
    """How the main value is shown: as text, as code, or as places in the passage or the text."""
    published_head: PublishedHead | None = None
    """The head of ``transformers`` that computes the same, if there is one."""
    starter_training: ClassVar[Mapping[str, int]] = {"max_steps": 500, "batch_size": 16}
    """Settings of phase 1 that ``dynamo init`` writes for a table of this type."""
    recognition_rank: ClassVar[int] = 100
    """``dynamo init`` tries types with lower ranks first."""

    def __init_subclass__(cls) -> None:
        """Accept the name that version 0.1.0 used for instructions; to be removed in the next release."""
        super().__init_subclass__()
        if "wordings" in vars(cls):
            warnings.warn(f"{cls.__name__}.wordings is now instruction_templates", DeprecationWarning, stacklevel=2)
            cls.instruction_templates = vars(cls)["wordings"]

    def __init__(self, name: str, config: TaskConfig) -> None:
        self.name, self.config = name, config
        self.calibration = AnswerCalibration()
        """Of the answers; fitted at the end of training, and stored in the checkpoint."""
        self.is_specific = False
        """Whether the type's instructions name this task; set if another task shares them."""
        self._columns = {**self.column_names, **self.optional_columns}
        for key in config.columns:
            if key not in self._columns:
                raise ConfigError(f"tasks.{name}.columns: no column '{key}'; {did_you_mean(key, self._columns)}")

    @functools.cached_property
    def instructions(self) -> list[str]:
        """Training instructions: configured ones, else the type's."""
        return self._worded(self.config.instructions, self.instruction_templates.training)

    @functools.cached_property
    def validation_instructions(self) -> list[str]:
        """Instructions to select and calibrate the router: the configured training instructions, else the type's."""
        return self._worded(
            self.config.instructions, self.instruction_templates.validation or self.instruction_templates.training
        )

    @functools.cached_property
    def evaluation_instructions(self) -> list[str]:
        """Scoring instructions: configured ones, else the type's, which are held out of training."""
        return self._worded(
            self.config.evaluation_instructions,
            self.instruction_templates.evaluation or self.instruction_templates.training,
        )

    def name_itself(self) -> None:
        """Name this task in the type's instructions from now on."""
        self.is_specific = True
        for name in ("instructions", "validation_instructions", "evaluation_instructions"):
            vars(self).pop(name, None)

    def _worded(self, configured: Sequence[str] | None, of_type: Sequence[str]) -> list[str]:
        if configured is not None:
            return [self.wording(pattern) for pattern in configured]
        written = [self.wording(pattern) for pattern in of_type]
        return [f"{text.rstrip(' .:')} ({self.subject})." for text in written] if self.is_specific else written

    def wording(self, pattern: str) -> str:
        """Turn an instruction of the type into one of this task."""
        return pattern

    @property
    def subject(self) -> str:
        """What tells this task from others of its type: its description, or else its name."""
        return self.config.description or self.name.replace("_", " ").replace("-", " ")

    # --- tables of a user's own ---------------------------------------------------------------------------------------

    @classmethod
    def recognise(cls, table: Table, name: str) -> Guess | None:
        """Guess the settings of a task from a table, by the values of its columns; None if it is of another type.

        Args:
            table: the columns.
            name: name of the task.

        Raises:
            ConfigError: only the user can decide; the message is a question.
        """
        return None

    @classmethod
    def guess(cls, table: Table, name: str, why: str, found: Mapping[str, str], **settings: Any) -> Guess:
        """A guess for a table whose columns are ``found``: our column → the table's."""
        known = {**cls.column_names, **cls.optional_columns}
        own = {mine: given for mine, given in found.items() if given not in known[mine]}
        columns = {"columns": own} if own else {}
        return Guess(name, cls.type, str(table.path), table.rows, why, {**columns, **settings})

    # --- data ---------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def read(self, row: Mapping[str, Any], where: str) -> Example:
        """Turn a row into an example. Raises ``DataError`` naming ``where`` if it cannot be one."""

    def column(self, row: Mapping[str, Any], name: str, where: str) -> Any:
        """The value of one of our columns, under its configured or a known name."""
        names, found = self.names_of(name), self._present(row, name)
        for candidate in found:
            if row[candidate] is not None:
                return row[candidate]
        empty = next(iter(found), None)
        if empty is not None:
            raise DataError(f"{where}: column '{empty}' of task '{self.name}' is empty", f"no value in '{empty}'")
        raise DataError(
            f"{where}: task '{self.name}' needs a column '{names[0]}', found {', '.join(map(str, row)) or 'none'}; "
            f"name it with tasks.{self.name}.columns",
            f"no column '{names[0]}'",
        )

    def input_value(self, row: Mapping[str, Any], column: str) -> Any:
        """The value of a column of inputs, under any name that it may have; None if there is none."""
        known = {**self.column_names, **self.optional_columns}[column]
        others = [given for given in row if str(given).strip().casefold() in {name.casefold() for name in known}]
        found = (row[name] for name in [*self._present(row, column), *others])
        return next((value for value in found if value is not None), None)

    def _present(self, row: Mapping[str, Any], name: str) -> list[str]:
        """The columns of a row that can be one of ours."""
        found = [candidate for candidate in self.names_of(name) if candidate in row]
        if not found and name not in self.config.columns:  # "Text" for "text", as spreadsheets write it
            wanted = {candidate.casefold() for candidate in self.names_of(name)}
            found = [given for given in row if str(given).strip().casefold() in wanted]
        return found

    def names_of(self, column: str) -> tuple[str, ...]:
        """The names that one of our columns may have in the data: the configured one, else all that are known."""
        return (self.config.columns[column],) if column in self.config.columns else self._columns[column]

    def optional_column(self, row: Mapping[str, Any], name: str, where: str) -> Any:
        """Like ``column``; None where a row has no such column or no value, unless the configuration names it."""
        if name not in self.config.columns and all(row.get(candidate) is None for candidate in self._columns[name]):
            return None
        return self.column(row, name, where)

    def optional_value(self, row: Mapping[str, Any], name: str, where: str) -> Any:
        """Like ``column``; None where the row has the column, but no value in it."""
        values = [row[candidate] for candidate in self._present(row, name)]
        return None if values and all(value in (None, "") for value in values) else self.column(row, name, where)

    def text_column(self, row: Mapping[str, Any], name: str, where: str) -> str:
        """Like ``column``, for text; lone surrogates, which no file can hold, are replaced."""
        value = self.column(row, name, where)
        if not isinstance(value, str):
            raise DataError(
                f"{where}: column '{name}' of task '{self.name}' should be text, found {value!r:.60}",
                f"'{name}' is not text",
            )
        return clean(value)

    def output_names(self) -> list[str]:
        """Names of the head's outputs, by number, for other programs."""
        return [str(number) for number in range(self.head_config().labels)]

    def label(self, example: Example) -> str | None:
        """The expected class; None for types without classes."""
        return None

    def labels_of(self, example: Example) -> Sequence[str]:
        """All labels of an example, to count them: the expected class, if there is one."""
        label = self.label(example)
        return [] if label is None else [label]

    def lost(self, example: EncodedExample, source: EncodedSource, target: str) -> str | None:
        """What part of ``target`` the encoded example has lost, in a few words; None if it has lost nothing."""
        return None

    def read_characters(self, source: EncodedSource) -> int:
        """Number of characters of the windowed text that the task reads."""
        windows = source.windows if self.all_windows else source.windows[:1]
        return max((window.offsets[-1][1] for window in windows if window.offsets), default=0)

    def is_cut(self, source: EncodedSource) -> bool:
        """Whether the task does not read all of a source."""
        return source.cut or source.question_cut or (not self.all_windows and len(source.windows) > 1)

    def reading_note(self, row: Mapping[str, Any], example: Example) -> str | None:
        """What was changed or assumed when a row was read, in a few words; None if nothing was."""
        return None

    def split_group(self, example: Example) -> str:
        """A text that must not occur in both training and validation data: the passage, else the text."""
        return example.text if example.context is None else example.context

    # --- model --------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def head_config(self) -> HeadConfig:
        """The head that this task needs."""

    def unanswered(self, source: EncodedSource, route: int) -> EncodedExample:
        """Encode a source without target and labels, for the adapter ``route``."""
        windows = [w.ids for w in source.windows]
        deep = len(windows) if self.all_windows else 1
        return EncodedExample(route, windows, self.name, deep, choices=source.choice_ids if self.takes_choices else ())

    @abc.abstractmethod
    def encode(self, example: Example, source: EncodedSource, route: int) -> EncodedExample:
        """Add target and labels to an encoded source."""

    def study(self, head: Head, examples: Iterable[Example]) -> None:
        """Note what training must know of all training examples, such as how often each label occurs.

        Called when training starts and when it resumes. Most types need nothing.
        """
        return

    @abc.abstractmethod
    def losses(self, head: Head, hidden: Tensor, view: TaskView) -> Tensor:
        """The loss of every label of this task's share of a batch.

        Args:
            head: the task's head.
            hidden: the whole top run ``(tokens, hidden)``.
            view: where the task's tokens are in it, and its labels.

        Returns:
            ``(labels,)`` in the order of ``view.label_rows``, not averaged, so that micro-batches can be summed.
        """

    def answers(self, head: Head, hidden: Tensor, view: TaskView, sources: Sequence[EncodedSource]) -> list[Answer]:
        """Answers of a task that reads them off the hidden states. Generation tasks decode instead."""
        raise AssertionError(f"task type '{self.type}' generates")

    def shown(self, answer: Answer) -> Answer:
        """An answer as callers see it."""
        return answer

    # --- calibration --------------------------------------------------------------------------------------------------

    def evidence(self, head: Head, hidden: Tensor, view: TaskView) -> tuple[Tensor, Tensor] | None:
        """What the head thought of the labels of this task's share of a batch, for calibration.

        Returns:
            Logits ``(labels, outcomes)``, without the task's temperature, and the right outcomes ``(labels,)``. None
            for types whose answers have no calibrated probabilities.
        """
        return None

    def exported(self, outputs: Tensor) -> Tensor:
        """What an exported graph gives for the head's outputs: calibrated logits, where nothing else is said."""
        return outputs / self.calibration.temperature

    def calibrate(self, logits: Tensor, truth: Tensor) -> AnswerCalibration:
        """Fit the calibration of the answers to the evidence of many examples, one after the other."""
        return AnswerCalibration(fit_temperature(logits, truth))

    def tune(self, answers: Sequence[Answer], examples: Sequence[Example]) -> AnswerCalibration:
        """Fit thresholds of the calibration that need whole answers; only called for types with ``tunes_answers``."""
        return self.calibration

    # --- scoring ------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def score(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> dict[str, float]:
        """Metrics of answers; None stands for an answer of another type and scores 0."""

    def confusion(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> dict[str, dict[str, int]]:
        """Expected label → answered label → how often, for types with labels; ``none`` is an answer of another type."""
        found: dict[str, dict[str, int]] = {}
        for answer, example in zip(answers, examples, strict=True):
            expected = self.label(example)
            given = "none" if answer is None else str(answer.get("best_guess", answer.get("label")))
            if expected is not None:
                own = found.setdefault(expected, {})
                own[given] = own.get(given, 0) + 1
        return found

    def interval(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> tuple[float, float]:
        """95 % bootstrap interval of the main metric over examples; for metrics that are means over examples."""
        pairs = zip(answers, examples, strict=True)
        return bootstrap_interval([self.score([answer], [example])[self.main_metric] for answer, example in pairs])

    @abc.abstractmethod
    def trivial_answers(self, train: Sequence[Example], examples: Sequence[Example]) -> list[Answer]:
        """Answers of a trivial baseline, which learns nothing."""
