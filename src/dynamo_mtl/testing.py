"""Check a task type against its contract, on rows of its data. Meant for the tests of your own task types.

from dynamo_mtl.testing import check_task_type

def test_my_type():
    check_task_type(MyType, rows, "minilm")
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dynamo_mtl.config.system_config import SystemConfig
from dynamo_mtl.config.validation import validate
from dynamo_mtl.errors import DataError
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.system import System, build_system
from dynamo_mtl.tasks.task import Answer, Example, Task

NAME = "checked"
PLACE = "file.csv, line 7"
TOLERANCE = 1e-4


def check_task_type(
    kind: type[Task], rows: Sequence[Mapping[str, Any]], backbone: str, settings: Mapping[str, Any] | None = None
) -> None:
    """Read, encode, answer and score a few rows, and check their losses and gradients.

    Args:
        kind: the type.
        rows: four or more of its data.
        backbone: hub id, folder or ``minilm``.
        settings: of the task, beside its type.

    Raises:
        AssertionError: the type breaks its contract; the message says how.
    """
    config = {
        "data": {"paths": {NAME: "unused"}, "max_source_length": 96, "window_overlap": 16},
        "tasks": {NAME: {"type": kind.type, **(settings or {})}},
        "lora_configs": {NAME: {"rank": 2}},
        "model": {"base_model_name": backbone, "precision": "fp32"},
        "router": {"hidden_sizes": [4]},
    }
    task = kind(NAME, validate(kind.Config, config["tasks"][NAME], NAME))
    examples = [task.read(row, f"row {number}") for number, row in enumerate(rows)]
    _check_reading(task, examples)
    _check_wordings(task)
    torch.manual_seed(0)
    system = build_system(validate(SystemConfig, config, NAME), lambda _: examples, torch.device("cpu"))
    with torch.no_grad():
        for parameter in system.model.bank.parameters():
            parameter.normal_(std=0.1)
    _check_losses(system, examples)
    _check_answers(system, examples)


def _check_reading(task: Task, examples: Sequence[Example]) -> None:
    assert len(examples) >= 4, "give four rows or more"
    for example in examples:
        assert isinstance(example.text, str), f"text should be str, found {example.text!r:.60}"
        assert isinstance(example.target, str), f"target should be str, JSON where it has parts: {example.target!r:.60}"
        assert (example.context is not None) == task.needs_context, "needs_context should say whether rows have one"
    try:
        task.read({"nothing": 1}, PLACE)
    except DataError as error:
        said = str(error)
    else:
        said = "nothing"
    assert PLACE in said, f"a row without its columns should raise DataError that names its place, found {said}"


def _check_wordings(task: Task) -> None:
    sets = [set(task.instructions), set(task.validation_instructions), set(task.evaluation_instructions)]
    assert sets[0], "instruction_templates.training should hold instructions, or no instruction can ask for the task"
    if task.instruction_templates.validation and task.instruction_templates.evaluation:
        assert len(set.union(*sets)) == sum(map(len, sets)), "a wording is in two sets"


def _losses(system: System, examples: Sequence[Example]) -> torch.Tensor:
    packed = system.collate([system.encode(example, NAME) for example in examples])
    output = system.model(packed.batch, system.model.oracle_weights(packed.routes), [0], 1)
    (view,) = packed.views
    losses = system.tasks[NAME].losses(system.model.head(NAME), output.hidden, view)
    assert losses.shape == view.label_rows.shape, "losses should be one for each label, in the order of label_rows"
    return losses


def _check_losses(system: System, examples: Sequence[Example]) -> None:
    system.model.eval()
    whole = _losses(system, examples)
    assert bool(whole.isfinite().all()), "a loss is not finite"
    parts = torch.cat([_losses(system, [example]) for example in examples])
    sums = [float(losses.detach().sum()) for losses in (whole, parts)]
    difference = abs(sums[0] - sums[1]) / max(1.0, abs(sums[0]))
    assert difference < TOLERANCE, f"sums over micro-batches should add up; they differ by {difference:.1e}"
    whole.mean().backward()
    for part, module in (("adapter", system.model.bank[NAME]), ("head", system.model.head(NAME))):
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        assert any(float(g.abs().sum()) > 0 for g in gradients), f"the loss gives the {part} no gradient"


def _check_answers(system: System, examples: Sequence[Example]) -> None:
    task = system.tasks[NAME]
    inputs = [TextInput(example.text, example.context, choices=example.choices) for example in examples]
    predictions = Predictor(system).predict(inputs, [NAME] * len(inputs))
    answers: list[Answer | None] = [prediction.answer for prediction in predictions]
    json.dumps(answers, allow_nan=False)
    scores = task.score(answers, examples)
    assert task.main_metric in scores, f"score should have the main metric '{task.main_metric}'"
    assert all(math.isfinite(value) for value in scores.values()), f"a score is not finite: {scores}"
    none = task.score([None] * len(examples), examples)[task.main_metric]
    assert none == 0, f"answers of another type should score 0, found {none}"
    trivial = task.trivial_answers(examples, examples)
    keys = {tuple(sorted(answer)) for answer in [*answers, *trivial] if answer is not None}
    assert len(keys) == 1, f"trivial answers should have the keys of the model's: {keys}"
    low, high = task.interval(answers, examples)
    assert low <= high, f"interval {low} to {high}"
