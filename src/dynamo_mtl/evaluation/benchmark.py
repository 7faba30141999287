"""Score a checkpoint: every task under several systems, and routing on four kinds of input."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from dynamo_mtl.checkpoint.metadata import METADATA, Metadata
from dynamo_mtl.config.comparison_config import SYSTEMS
from dynamo_mtl.config.identity import settings_of
from dynamo_mtl.config.system_config import SystemConfig
from dynamo_mtl.config.training_config import PipelineConfig
from dynamo_mtl.errors import CheckpointError, ConfigError, DataError
from dynamo_mtl.evaluation.compared_systems import (
    Choice,
    ComparedSystem,
    choose_by_arrow,
    choose_by_router,
    choose_nearest_centroid,
    choose_oracle,
    choose_random,
    mix_softly,
    mix_uniformly,
    without_adapters,
)
from dynamo_mtl.evaluation.confidence import score_confidence
from dynamo_mtl.evaluation.inputs import Examples, make_routed_inputs, task_examples, task_input
from dynamo_mtl.evaluation.result import FORMAT, Result, Scores
from dynamo_mtl.evaluation.routing_scores import score_kinds, score_routing
from dynamo_mtl.evaluation.shift import Sets, score_shift, shift_sets
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.scoring import predict_examples
from dynamo_mtl.metrics.generation import signatures
from dynamo_mtl.storage import MANIFEST, verify_folder
from dynamo_mtl.system import System, load_system
from dynamo_mtl.tasks.tables import TRAIN
from dynamo_mtl.tasks.task import Answer, Example
from dynamo_mtl.training.stages import FOLDERS

logger = logging.getLogger(__name__)

CENTROID_SAMPLE = 200
"""Training inputs of each task whose mean feature is its centroid."""


@dataclass
class AnswerTable:
    """Cache of a model's answers with one adapter and its head at a time. Answers are computed on first use."""

    predictor: Predictor
    known: dict[tuple[str, str], dict[int, Answer]] = field(default_factory=dict)
    """Task of the examples and answering task → row → answer."""

    def answers(self, task: str, rows: Sequence[Example], choice: Choice, label: str) -> list[Answer | None]:
        """Return the chosen tasks' answers to a task's examples; None where the chosen task has another type."""
        types = {name: t.type for name, t in self.predictor.system.tasks.items()}
        for other in dict.fromkeys(choice.tasks):
            found = self.known.setdefault((task, other), {})
            missing = [i for i, chosen in enumerate(choice.tasks) if chosen == other and i not in found]
            if missing and types[other] == types[task]:
                inputs = [task_input(self.predictor.system, task, rows[i]) for i in missing]
                made = predict_examples(self.predictor, inputs, [other] * len(inputs), None, f"{label} {task}")
                found.update({i: p.answer for i, p in zip(missing, made, strict=True)})
        return [self.known[task, other].get(i) for i, other in enumerate(choice.tasks)]


@dataclass
class Scoreboard:
    """Scores systems on the same examples."""

    examples: Examples
    scores: dict[str, Scores] = field(default_factory=dict)
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    tables: dict[int, AnswerTable] = field(default_factory=dict)
    labels: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    """For each task with labels, how often the first system gave which label for which expected label."""

    def add(self, name: str, compared: ComparedSystem) -> None:
        """Score a system on every task."""
        predictor = compared.predictor
        table = self.tables.setdefault(id(predictor), AnswerTable(predictor))
        for task, rows in self.examples.items():
            inputs = [task_input(predictor.system, task, row) for row in rows]
            choice = compared.choose(inputs, [task] * len(inputs))
            if choice.weights is None:
                answers = table.answers(task, rows, choice, name)
            else:
                made = predict_examples(predictor, inputs, choice.tasks, choice.weights, f"{name} {task}")
                types = {other: t.type for other, t in predictor.system.tasks.items()}
                answers = [p.answer if types[p.task] == types[task] else None for p in made]
            self._note(name, predictor.system, task, answers)

    def add_trivial(self, system: System, seed: int) -> None:
        """Score the trivial system, which does not learn, on every task."""
        for task, rows in self.examples.items():
            train = task_examples(system, task, TRAIN, seed)
            self._note("trivial", system, task, system.tasks[task].trivial_answers(train, rows))

    def _note(self, name: str, system: System, task: str, answers: Sequence[Answer | None]) -> None:
        rows = self.examples[task]
        if name != "trivial" and task not in self.labels and (confusion := system.tasks[task].confusion(answers, rows)):
            self.labels[task] = confusion
        scores = {**system.tasks[task].score(answers, rows), "n": len(rows)}
        self.scores.setdefault(name, {})[task] = scores
        self.intervals.setdefault(name, {})[task] = system.tasks[task].interval(answers, rows)
        metric = system.tasks[task].main_metric
        logger.info("%s  %s %s %.4g", name, task, metric, scores[metric])


def evaluate_checkpoint(checkpoint: Path, config: PipelineConfig, split: str, systems: Sequence[str]) -> Result:
    """Score a checkpoint on the split of the data that ``config`` names.

    Args:
        checkpoint: folder written by training.
        config: whose data and task settings are used.
        split: of the data.
        systems: names from ``comparison_config.SYSTEMS``, except those that need a training of their own.

    Raises:
        DynamoError: unusable checkpoint, configuration or data.
    """
    device = PartialState().device  # connects the processes of a job, where there are several
    assert device is not None
    system, metadata = load_system(checkpoint, device, config)
    predictor = Predictor(system, metadata.calibration)
    sets: Sets = {}
    try:
        sets = shift_sets(system, config.data)
    except (ConfigError, DataError) as error:
        logger.warning("the files of shift_files are left out: %s", error)
    compared_systems = systems_of(predictor, systems, metadata.seed)
    if "single_task" in systems and (alone := _single_task(predictor, checkpoint, device, config)):
        compared_systems["single_task"] = alone
    board = Scoreboard({n: task_examples(system, n, split, metadata.seed) for n in system.tasks})
    if "trivial" in systems:  # first, since it needs the training data
        board.add_trivial(system, metadata.seed)
    for name, compared in compared_systems.items():
        board.add(name, compared)
    routing = {} if config.model.adapters != "routed" else score_routing(predictor, board.examples, config)
    confidence = score_confidence(system, config, split, metadata.seed, list(system.tasks))
    shift = {} if config.model.adapters != "routed" else score_shift(predictor, sets)
    return make_result(
        metadata, system, split, board, routing, shift=shift, confidence=confidence, settings=settings_of(config)
    )


def evaluate_shift(checkpoint: Path, config: PipelineConfig, split: str) -> Result:
    """Score only the routing of a checkpoint: of inputs from elsewhere, and beside them of the split of its data.

    Raises:
        ConfigError: the model has nothing that routes.
        DynamoError: unusable checkpoint, configuration or data.
    """
    if config.model.adapters != "routed":
        raise ConfigError(f"--shift: this model has adapters '{config.model.adapters}' and no router; leave it out")
    device = PartialState().device
    assert device is not None
    system, metadata = load_system(checkpoint, device, config)
    predictor, sets = Predictor(system, metadata.calibration), shift_sets(system, config.data)
    board = Scoreboard({n: task_examples(system, n, split, metadata.seed) for n in system.tasks})
    shift = score_shift(predictor, sets)
    routing = score_kinds(predictor, make_routed_inputs(system, board.examples, config.training.seed))
    return make_result(metadata, system, split, board, routing, shift=shift, settings=settings_of(config))


def _single_task(
    predictor: Predictor, checkpoint: Path, device: torch.device, config: PipelineConfig
) -> ComparedSystem | None:
    """Load the adapters of phase 1, if they are beside the checkpoint and belong to its tasks."""
    before = checkpoint / ".." / FOLDERS[1]
    if not (before / METADATA).is_file():
        logger.warning("single_task is left out: there is no %s", before)
        return None
    if _same_adapters(before, checkpoint):  # no phase has changed them since, so their answers are known
        return ComparedSystem(predictor, choose_oracle)
    try:
        return ComparedSystem(load_predictor(before, device, config), choose_oracle)
    except CheckpointError as error:
        logger.warning("single_task is left out: %s", error)
        return None


def _same_adapters(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same adapters and heads, byte for byte."""
    found = []
    for folder in (one, other):
        verify_folder(folder)
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found.append({name: entry for name, entry in manifest.items() if name.startswith(("adapters/", "heads/"))})
    return found[0] == found[1]


def systems_of(predictor: Predictor, systems: Sequence[str], seed: int) -> dict[str, ComparedSystem]:
    """Return those of ``systems`` that are one trained model with different ways to choose an adapter."""
    system = predictor.system
    top_k = system.config.router.top_k
    router = choose_by_router(predictor) if top_k == 1 else mix_softly(predictor, top_k)

    def centroids() -> ComparedSystem:
        train = {n: task_examples(system, n, TRAIN, seed, CENTROID_SAMPLE) for n in system.tasks}
        # If an instruction is needed, use one from training: the scored one would reveal the task.
        inputs = {
            n: [task_input(system, n, row, system.tasks[n].instructions) for row in rows] for n, rows in train.items()
        }
        return ComparedSystem(predictor, choose_nearest_centroid(predictor, inputs))

    makers = {
        "dynamo": lambda: ComparedSystem(predictor, router, routed=True),
        "oracle": lambda: ComparedSystem(predictor, choose_oracle),
        "soft": lambda: ComparedSystem(predictor, mix_softly(predictor, len(system.tasks))),
        "nearest_centroid": centroids,
        "arrow": lambda: ComparedSystem(predictor, choose_by_arrow(predictor)),
        "uniform": lambda: ComparedSystem(predictor, mix_uniformly(system)),
        "random": lambda: ComparedSystem(predictor, choose_random(system, seed)),
        "base": lambda: ComparedSystem(predictor, without_adapters(system)),
    }
    if system.config.model.adapters != "routed":  # nothing chooses, and there is one adapter or none to choose
        makers = {"oracle": makers["oracle"]}
    return {name: make() for name, make in makers.items() if name in systems}


def load_predictor(checkpoint: Path, device: torch.device, config: SystemConfig | None = None) -> Predictor:
    """Load a trained model without its router, for inputs whose task is given."""
    return Predictor(load_system(checkpoint, device, config, with_router=False)[0])


def make_result(
    metadata: Metadata, system: System, split: str, board: Scoreboard, routing: Mapping[str, Any], **more: Any
) -> Result:
    """Collect the measurements of a trained model in a ``Result``; ``more`` are further fields."""
    return Result(
        format=FORMAT,
        backbone=metadata.backbone,
        device=metadata.device,
        seed=metadata.seed,
        commit=metadata.commit,
        train_seconds=metadata.train_seconds,
        split=split,
        dataset_sizes=metadata.dataset_sizes,
        main_metrics={name: task.main_metric for name, task in system.tasks.items()},
        trivial_systems={name: task.trivial_name for name, task in system.tasks.items()},
        systems={name: board.scores[name] for name in SYSTEMS if name in board.scores},
        routing=routing,
        intervals=board.intervals,
        labels=board.labels,
        parameters=system.model.parameter_counts(),
        signatures=signatures(),
        **more,
    )
