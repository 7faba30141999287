"""Scores of a checkpoint as one result file: every task under several systems, and routing on three kinds of input.

Systems: ``dynamo`` (the router chooses), ``oracle`` (the same checkpoint told the true task), ``single_task`` (the
adapters as phase 1 left them, told the true task) and ``trivial`` (no learning at all).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from dynamo_mtl.errors import ConfigError, DataError
from dynamo_mtl.inference.predictor import Prediction, Predictor, TextInput
from dynamo_mtl.inference.scoring import RoutedInput, predict_examples, route_inputs, typed_answers
from dynamo_mtl.inference.system import System, SystemConfig, load_system
from dynamo_mtl.metrics.routing import confusion_matrix, length_router, routing_scores
from dynamo_mtl.model.metadata import METADATA, Metadata
from dynamo_mtl.tasks.tables import TRAIN, first_examples, open_task_table
from dynamo_mtl.tasks.task import Example

logger = logging.getLogger(__name__)

FORMAT = 1
SYSTEMS = ("dynamo", "oracle", "single_task", "trivial")
LENGTH_SAMPLE = 1000
"""Training inputs of each task that the length-only router learns from."""

Scores = dict[str, dict[str, float]]
Predictions = dict[str, list[Prediction]]
"""A system's answer to every example of every task."""


@dataclass(frozen=True)
class Result:
    """What a result file holds; written by ``dynamo evaluate``, never by hand."""

    format: int
    backbone: str
    device: str
    seed: int
    commit: str | None
    """Revision of the source tree that trained the checkpoint."""
    train_seconds: float
    split: str
    dataset_sizes: Mapping[str, int]
    """Training examples of each task."""
    main_metrics: Mapping[str, str]
    trivial_systems: Mapping[str, str]
    systems: Mapping[str, Scores]
    routing: Mapping[str, Any]

    def write(self, path: Path) -> None:
        """Write as JSON. Raises ``ConfigError`` if the place cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: the result cannot be written ({error})") from error


def read_result(path: Path) -> Result:
    """Read a result file. Raises ``ConfigError`` if it is none, or of another format."""
    try:
        result = Result(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not a result file written by dynamo evaluate ({error})") from error
    if result.format != FORMAT:
        raise ConfigError(f"{path}: format {result.format!r}, this program reads format {FORMAT}")
    return result


def evaluate_checkpoint(checkpoint: Path, config: SystemConfig, split: str, systems: Sequence[str]) -> Result:
    """Score a checkpoint on the split of the data that ``config`` names.

    Raises:
        DynamoError: unusable checkpoint, configuration or data.
    """
    device = PartialState().device  # connects the processes of a job, where there are several
    assert device is not None
    system, metadata = load_system(checkpoint, device, config)
    predictor = Predictor(system, metadata.calibration)
    examples = {n: _examples(system, n, split, metadata.seed) for n in system.tasks}
    scores: dict[str, Scores] = {}
    if "trivial" in systems:  # first, since it is the one that needs the training data
        scores["trivial"] = {n: _trivial(system, n, examples[n], metadata.seed) for n in system.tasks}
    routed: Predictions = {}
    if "dynamo" in systems:
        routed = _predict(predictor, examples, hint=False, label="dynamo")
        scores["dynamo"] = _score(predictor, examples, routed)
    if "oracle" in systems:
        known = routed if system.config.router.top_k == 1 else {}
        answers = _predict(predictor, examples, hint=True, label="oracle", known=known)
        scores["oracle"] = _score(predictor, examples, answers)
    if "single_task" in systems:
        before = checkpoint / ".." / "phase_1"
        if (before / METADATA).is_file():
            alone = Predictor(load_system(before, device, config, with_router=False)[0])
            scores["single_task"] = _score(alone, examples, _predict(alone, examples, hint=True, label="single_task"))
        else:
            logger.warning("single_task is left out: there is no %s", before)
    return _result(metadata, system, split, scores, _routing(predictor, examples, routed, metadata.seed))


def _result(
    metadata: Metadata, system: System, split: str, scores: Mapping[str, Scores], routing: Mapping[str, Any]
) -> Result:
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
        systems=scores,
        routing=routing,
    )


def _examples(system: System, task: str, split: str, seed: int, limit: int | None = None) -> list[Example]:
    return first_examples(open_task_table(system.tasks[task], split, system.config.data, seed), limit)


def _predict(
    predictor: Predictor,
    examples: Mapping[str, Sequence[Example]],
    hint: bool,
    label: str,
    known: Mapping[str, Sequence[Prediction]] | None = None,
) -> Predictions:
    """Predictions of every task's examples, but for those that ``known`` has from the adapter of the right task."""
    predictions: Predictions = {}
    for name, rows in examples.items():
        found = {i: p for i, p in enumerate((known or {}).get(name, ())) if p.task == name}
        missing = [i for i in range(len(rows)) if i not in found]
        instruction = _needed_instruction(predictor.system, name)
        made = predict_examples(predictor, name, [rows[i] for i in missing], hint, instruction, f"{label} {name}")
        found.update(zip(missing, made, strict=True))
        predictions[name] = [found[i] for i in range(len(rows))]
    return predictions


def _score(predictor: Predictor, examples: Mapping[str, Sequence[Example]], predictions: Predictions) -> Scores:
    scores: Scores = {}
    for name, rows in examples.items():
        answers = typed_answers(predictor, name, predictions[name])
        scores[name] = {**predictor.system.tasks[name].score(answers, rows), "n": len(rows)}
    return scores


def _needed_instruction(system: System, task: str) -> str | None:
    """A held-out wording for tasks that bare inputs cannot name."""
    needed = system.config.tasks[task].requires_instruction
    return system.tasks[task].evaluation_instructions[0] if needed else None


def _trivial(system: System, task: str, examples: Sequence[Example], seed: int) -> dict[str, float]:
    answers = system.tasks[task].trivial_answers(_examples(system, task, TRAIN, seed), examples)
    return {**system.tasks[task].score(answers, examples), "n": len(examples)}


def _routing(
    predictor: Predictor, examples: Mapping[str, Sequence[Example]], routed: Predictions, seed: int
) -> dict[str, Any]:
    """Routing of bare, instructed and crossed inputs, and what input length alone would give.

    Bare inputs that ``routed`` holds predictions of are not routed again.
    """
    system = predictor.system
    kinds = make_routed_inputs(system, examples, seed)
    routing: dict[str, Any] = {"tasks": list(system.tasks), "calibration": asdict(predictor.calibration)}
    for kind, inputs in kinds.items():
        if inputs:
            if kind == "bare" and routed:
                tasks = dict.fromkeys(i.task for i in inputs)
                probabilities = np.array([p.probabilities for name in tasks for p in routed[name]])
                truth = [system.route_of(i.task) for i in inputs]
            else:
                probabilities, truth = route_inputs(predictor, inputs)
            routing[kind] = routing_scores(probabilities, truth, predictor.calibration.threshold)
            if kind == "bare":
                predicted = probabilities.argmax(axis=1).tolist()
                routing["confusion"] = confusion_matrix(predicted, truth, len(system.tasks))
    bare = kinds["bare"]
    if bare:
        tasks = list(dict.fromkeys(i.task for i in bare))
        try:
            train = [_examples(system, name, TRAIN, seed, LENGTH_SAMPLE) for name in tasks]
        except DataError as error:
            logger.warning("the router that sees only the length is left out: %s", error)
            return routing
        learned = [[_length(system, _input(e)) for e in rows] for rows in train]
        guessed = [tasks[g] for g in length_router(learned, [_length(system, i.input) for i in bare])]
        one_hot = np.eye(len(system.tasks))[[system.route_of(g) for g in guessed]]
        routing["length_only"] = routing_scores(one_hot, [system.route_of(i.task) for i in bare])
    return routing


def make_routed_inputs(
    system: System, examples: Mapping[str, Sequence[Example]], seed: int
) -> dict[str, list[RoutedInput]]:
    """Bare, instructed and crossed inputs made from examples, with wordings that training never saw."""
    rng = np.random.default_rng([seed, 11])
    kinds: dict[str, list[RoutedInput]] = {"bare": [], "instructed": [], "crossed": []}
    for name, rows in examples.items():
        wordings = system.tasks[name].evaluation_instructions
        others = [o for o, t in system.tasks.items() if o != name and not t.needs_context]
        for example in rows:
            if not system.config.tasks[name].requires_instruction:
                kinds["bare"].append(RoutedInput(name, _input(example)))
            wording = wordings[int(rng.integers(len(wordings)))]
            kinds["instructed"].append(RoutedInput(name, TextInput(example.text, example.context, wording)))
            if others and not system.tasks[name].needs_context:
                other = others[int(rng.integers(len(others)))]
                asked = system.tasks[other].evaluation_instructions
                wording = asked[int(rng.integers(len(asked)))]
                kinds["crossed"].append(RoutedInput(other, TextInput(example.text, None, wording)))
    return kinds


def _input(example: Example) -> TextInput:
    return TextInput(example.text, example.context)


def _length(system: System, text: TextInput) -> int:
    return sum(len(w.ids) for w in system.source.encode(text.text, text.context, text.instruction).windows)
