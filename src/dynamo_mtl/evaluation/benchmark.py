"""Scores of a checkpoint: every task under several systems, and routing on three kinds of input."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from dynamo_mtl.errors import DataError
from dynamo_mtl.evaluation.baselines import (
    Choice,
    Contender,
    choose_by_arrow,
    choose_by_router,
    choose_nearest_centroid,
    choose_random,
    mix_softly,
    mix_uniformly,
    told,
    without_adapters,
)
from dynamo_mtl.evaluation.result import FORMAT, Result, Scores
from dynamo_mtl.inference.predictor import Predictor, TextInput
from dynamo_mtl.inference.scoring import RoutedInput, predict_examples, route_inputs
from dynamo_mtl.inference.system import System, SystemConfig, load_system
from dynamo_mtl.metrics.generation import signatures
from dynamo_mtl.metrics.routing import confusion_matrix, length_router, routing_scores
from dynamo_mtl.model.metadata import METADATA, Metadata
from dynamo_mtl.tasks.tables import TRAIN, first_examples, open_task_table
from dynamo_mtl.tasks.task import Answer, Example

logger = logging.getLogger(__name__)

LENGTH_SAMPLE = 1000
"""Training inputs of each task that the length-only router learns from."""
CENTROID_SAMPLE = 200
"""Training inputs of each task whose features a centroid is the mean of."""

Examples = Mapping[str, Sequence[Example]]


@dataclass
class AnswerTable:
    """Answers of one model, each adapter and head by itself, computed when they are first asked for."""

    predictor: Predictor
    known: dict[tuple[str, str], dict[int, Answer]] = field(default_factory=dict)
    """Task of the examples and answering task → row → answer."""

    def answers(self, task: str, rows: Sequence[Example], choice: Choice, label: str) -> list[Answer | None]:
        """Answers to a task's examples by the chosen tasks; None where one of another type answers."""
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
    """Scores contenders on the same examples."""

    examples: Examples
    scores: dict[str, Scores] = field(default_factory=dict)
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    tables: dict[int, AnswerTable] = field(default_factory=dict)

    def add(self, name: str, contender: Contender) -> None:
        """Score a contender on every task."""
        predictor = contender.predictor
        table = self.tables.setdefault(id(predictor), AnswerTable(predictor))
        for task, rows in self.examples.items():
            inputs = [task_input(predictor.system, task, row) for row in rows]
            choice = contender.choose(inputs, [task] * len(inputs))
            if choice.weights is None:
                answers = table.answers(task, rows, choice, name)
            else:
                made = predict_examples(predictor, inputs, choice.tasks, choice.weights, f"{name} {task}")
                types = {other: t.type for other, t in predictor.system.tasks.items()}
                answers = [p.answer if types[p.task] == types[task] else None for p in made]
            self._note(name, predictor.system, task, answers)

    def add_trivial(self, system: System, seed: int) -> None:
        """Score each task's system without learning."""
        for task, rows in self.examples.items():
            train = task_examples(system, task, TRAIN, seed)
            self._note("trivial", system, task, system.tasks[task].trivial_answers(train, rows))

    def _note(self, name: str, system: System, task: str, answers: Sequence[Answer | None]) -> None:
        rows = self.examples[task]
        scores = {**system.tasks[task].score(answers, rows), "n": len(rows)}
        self.scores.setdefault(name, {})[task] = scores
        self.intervals.setdefault(name, {})[task] = system.tasks[task].interval(answers, rows)
        metric = system.tasks[task].main_metric
        logger.info("%s  %s %s %.4g", name, task, metric, scores[metric])


def evaluate_checkpoint(checkpoint: Path, config: SystemConfig, split: str, systems: Sequence[str]) -> Result:
    """Score a checkpoint on the split of the data that ``config`` names.

    Args:
        checkpoint: folder written by training.
        config: whose data and task settings are used.
        split: of the data.
        systems: of ``result.SYSTEMS``, those that need no training beyond the checkpoint's own.

    Raises:
        DynamoError: unusable checkpoint, configuration or data.
    """
    device = PartialState().device  # connects the processes of a job, where there are several
    assert device is not None
    system, metadata = load_system(checkpoint, device, config)
    predictor = Predictor(system, metadata.calibration)
    board = Scoreboard({n: task_examples(system, n, split, metadata.seed) for n in system.tasks})
    if "trivial" in systems:  # first, since it is the one that needs the training data
        board.add_trivial(system, metadata.seed)
    for name, contender in own_contenders(predictor, systems, metadata.seed).items():
        board.add(name, contender)
    if "single_task" in systems:
        before = checkpoint / ".." / "phase_1"
        if (before / METADATA).is_file():
            board.add("single_task", Contender(load_predictor(before, device, config), told))
        else:
            logger.warning("single_task is left out: there is no %s", before)
    routing = {} if config.model.adapters != "routed" else score_routing(predictor, board.examples, metadata.seed)
    return make_result(metadata, system, split, board, routing)


def own_contenders(predictor: Predictor, systems: Sequence[str], seed: int) -> dict[str, Contender]:
    """Those of ``systems`` that are one trained model with different choosers."""
    system = predictor.system
    top_k = system.config.router.top_k
    router = choose_by_router(predictor) if top_k == 1 else mix_softly(predictor, top_k)

    def centroids() -> Contender:
        train = {n: task_examples(system, n, TRAIN, seed, CENTROID_SAMPLE) for n in system.tasks}
        inputs = {n: [task_input(system, n, row) for row in rows] for n, rows in train.items()}
        return Contender(predictor, choose_nearest_centroid(predictor, inputs))

    makers = {
        "dynamo": lambda: Contender(predictor, router, routed=True),
        "oracle": lambda: Contender(predictor, told),
        "soft": lambda: Contender(predictor, mix_softly(predictor, len(system.tasks))),
        "nearest_centroid": centroids,
        "arrow": lambda: Contender(predictor, choose_by_arrow(predictor)),
        "uniform": lambda: Contender(predictor, mix_uniformly(system)),
        "random": lambda: Contender(predictor, choose_random(system, seed)),
        "base": lambda: Contender(predictor, without_adapters(system)),
    }
    return {name: make() for name, make in makers.items() if name in systems}


def load_predictor(checkpoint: Path, device: torch.device, config: SystemConfig | None = None) -> Predictor:
    """A trained model that is told the task, so that its router is not needed."""
    return Predictor(load_system(checkpoint, device, config, with_router=False)[0])


def make_result(
    metadata: Metadata, system: System, split: str, board: Scoreboard, routing: Mapping[str, Any], **more: Any
) -> Result:
    """Put what was measured of a trained model together; ``more`` are further fields."""
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
        systems=board.scores,
        routing=routing,
        intervals=board.intervals,
        signatures=signatures(),
        **more,
    )


def task_examples(system: System, task: str, split: str, seed: int, limit: int | None = None) -> list[Example]:
    """The first ``limit`` examples of a task's split, or all."""
    return first_examples(open_task_table(system.tasks[task], split, system.config.data, seed), limit)


def task_input(system: System, task: str, example: Example) -> TextInput:
    """An example as a user would send it: bare, or with a held-out wording where bare inputs cannot name the task."""
    needed = system.config.tasks[task].requires_instruction
    instruction = system.tasks[task].evaluation_instructions[0] if needed else None
    return TextInput(example.text, example.context, instruction)


def score_routing(predictor: Predictor, examples: Examples, seed: int) -> dict[str, Any]:
    """Routing of bare, instructed and crossed inputs, and what input length alone would give."""
    system = predictor.system
    kinds = make_routed_inputs(system, examples, seed)
    routing: dict[str, Any] = {"tasks": list(system.tasks), "calibration": asdict(predictor.calibration)}
    for kind, inputs in kinds.items():
        if inputs:
            probabilities, truth = route_inputs(predictor, inputs)
            routing[kind] = routing_scores(probabilities, truth, predictor.calibration.threshold)
            if kind == "bare":
                predicted = probabilities.argmax(axis=1).tolist()
                routing["confusion"] = confusion_matrix(predicted, truth, len(system.tasks))
    bare = kinds["bare"]
    if bare:
        tasks = list(dict.fromkeys(i.task for i in bare))
        try:
            train = [task_examples(system, name, TRAIN, seed, LENGTH_SAMPLE) for name in tasks]
        except DataError as error:
            logger.warning("the router that sees only the length is left out: %s", error)
            return routing
        learned = [[_length(system, TextInput(e.text, e.context)) for e in rows] for rows in train]
        guessed = [tasks[g] for g in length_router(learned, [_length(system, i.input) for i in bare])]
        one_hot = np.eye(len(system.tasks))[[system.route_of(g) for g in guessed]]
        routing["length_only"] = routing_scores(one_hot, [system.route_of(i.task) for i in bare])
    return routing


def make_routed_inputs(system: System, examples: Examples, seed: int) -> dict[str, list[RoutedInput]]:
    """Bare, instructed and crossed inputs made from examples, with wordings that training never saw."""
    rng = np.random.default_rng([seed, 11])
    kinds: dict[str, list[RoutedInput]] = {"bare": [], "instructed": [], "crossed": []}
    for name, rows in examples.items():
        wordings = system.tasks[name].evaluation_instructions
        others = [o for o, t in system.tasks.items() if o != name and not t.needs_context]
        for example in rows:
            if not system.config.tasks[name].requires_instruction:
                kinds["bare"].append(RoutedInput(name, TextInput(example.text, example.context)))
            wording = wordings[int(rng.integers(len(wordings)))]
            kinds["instructed"].append(RoutedInput(name, TextInput(example.text, example.context, wording)))
            if others and not system.tasks[name].needs_context:
                other = others[int(rng.integers(len(others)))]
                asked = system.tasks[other].evaluation_instructions
                wording = asked[int(rng.integers(len(asked)))]
                kinds["crossed"].append(RoutedInput(other, TextInput(example.text, None, wording)))
    return kinds


def _length(system: System, text: TextInput) -> int:
    return sum(len(w.ids) for w in system.source.encode(text.text, text.context, text.instruction).windows)
