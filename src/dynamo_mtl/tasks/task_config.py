"""Settings that every task type shares."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dynamo_mtl.data.locations import set_name
from dynamo_mtl.data.text_files import Reading


class TaskTraining(BaseModel):
    """Settings of phase 1 for one task; what is not given comes from ``training``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    num_epochs: float | None = Field(default=None, gt=0)
    """Passes over the training data."""
    max_steps: int | None = Field(default=None, ge=1)
    """Maximum number of updates."""
    batch_size: int | None = Field(default=None, ge=1)
    """Number of examples per update."""
    lora_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the adapter."""
    head_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the head."""
    load_best_model_at_end: bool | None = None
    """End in the best validated state rather than the last one."""


class TaskConfig(BaseModel):
    """Settings that every task type shares."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    type: str
    """The task's type; taken from its name if not given."""
    description: str | None = Field(default=None, min_length=1, max_length=200)
    """What the task is about, in a few words. Instructions name it where another task has the same type."""
    group: str | None = Field(default=None, min_length=1, max_length=100)
    """Name of a group of tasks that read the same inputs; ``group:NAME`` asks all of them about one text."""
    train_file: str | None = None
    """Overrides the training file of the task's data path."""
    validation_file: str | None = None
    """Overrides the validation file of the task's data path."""
    validation_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of a single file that is held out as validation data: of every label, the same rows every time."""
    reading: Reading = Reading()
    """How the files are written: separator, quoting, encoding, names of columns; what the files say, if not given."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our column name → the name it has in the data."""
    train_examples: int | None = Field(default=None, ge=1)
    """Use a random sample of that many training examples."""
    validation_examples: int | None = Field(default=None, ge=1)
    """Use a random sample of that many evaluation examples."""
    instructions: list[str] | None = Field(default=None, min_length=1)
    """Instructions that training uses; the type's own if not given."""
    evaluation_instructions: list[str] | None = None
    """Instructions that scoring uses; the type's own if not given."""
    examples: list[str | dict[str, str | list[str]]] = Field(default_factory=list, max_length=20)
    """Inputs to try in the playground: texts, or mappings with ``text``, ``context``, ``instruction`` and ``choices``.
    They are part of the checkpoint, so nothing is taken from the data by itself."""
    router_files: list[str] = Field(default_factory=list)
    """Tables or text files of further inputs of this task, without answers, from which only the router learns."""
    shift_files: dict[str, str] = Field(default_factory=dict)
    """Tables or text files of inputs from elsewhere, without answers, on which ``dynamo evaluate`` measures routing:
    their paths, or a mapping of names to paths. Training never reads them."""
    requires_instruction: bool = False
    """Plain inputs of this task are too much like those of another, so it is judged on instructed inputs only."""
    loss_weight: float = Field(default=1.0, gt=0)
    """Weight of the task's loss when tasks are mixed, in phases 2 and 3."""
    training: TaskTraining = TaskTraining()

    @field_validator("shift_files", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        if not isinstance(given, list) or not all(isinstance(path, str) for path in given):
            return given
        names = [set_name(path) for path in given]
        again = next((name for name in names if names.count(name) > 1), None)
        if again is not None:
            raise ValueError(f"two files have the name '{again}'; give a mapping of names to paths")
        return dict(zip(names, given, strict=True))
