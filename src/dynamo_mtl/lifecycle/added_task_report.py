"""Reports what adding a task changed: the older tasks' routing and answers, and the quality of the added task."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dynamo_mtl.config.training_config import PipelineConfig
from dynamo_mtl.errors import DataError
from dynamo_mtl.evaluation.benchmark import Scoreboard
from dynamo_mtl.evaluation.compared_systems import ComparedSystem, choose_by_router, choose_oracle
from dynamo_mtl.evaluation.inputs import Examples, make_routed_inputs, task_examples, task_input
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.scoring import InputProgress, RoutedInput, route_inputs
from dynamo_mtl.router_inputs import InputKind
from dynamo_mtl.system import System, load_system
from dynamo_mtl.tasks.task import Example

logger = logging.getLogger(__name__)

ANSWERS = 50
"""Examples of each older task whose answers are compared."""
FORMAT = 1


def added_task_report(before: Path, after: Path, config: PipelineConfig, limit: int) -> dict[str, Any]:
    """Compare a model before and after a task was added as its last one.

    Args:
        before: checkpoint without the task.
        after: checkpoint with the task.
        config: configuration of ``after``. Older tasks whose data is not found are left out, with a warning.
        limit: most validation examples of each task.

    Returns:
        ``added``: scores of the task, routed and with oracle routing. ``routing``: accuracy of each older task
        ``before`` and ``after``, on plain and instructed inputs. ``largest_fall``: largest loss of accuracy, in points.
        ``answers``: how many answers of the older tasks, under oracle routing, are identical.
    """
    device = torch.device("cpu")
    with_it, metadata = load_system(after, device, config)
    without, earlier = load_system(before, device)
    old, new = Predictor(without, earlier.calibration), Predictor(with_it, metadata.calibration)
    name = list(with_it.tasks)[-1]
    found = _examples(with_it, metadata.seed, limit)
    older: Examples = {task: rows for task, rows in found.items() if task != name}
    kinds = make_routed_inputs(without, older, metadata.seed)
    kinds = {kind: inputs for kind, inputs in kinds.items() if kind is not InputKind.CONFLICTING and inputs}
    routing = {
        when: {kind: _accuracies(predictor, inputs, f"{kind} inputs {when}") for kind, inputs in kinds.items()}
        for when, predictor in (("before", old), ("after", new))
    }
    falls = [
        100 * (routing["before"][kind][task] - routing["after"][kind][task])
        for kind, accuracies in routing["before"].items()
        for task in accuracies
    ]
    board = Scoreboard({name: found[name]})
    board.add("dynamo", ComparedSystem(new, choose_by_router(new), routed=True))
    board.add("oracle", ComparedSystem(new, choose_oracle))
    own = make_routed_inputs(with_it, {name: found[name]}, metadata.seed)
    return {
        "format": FORMAT,
        "backbone": metadata.backbone,
        "commit": metadata.commit,
        "seed": metadata.seed,
        "added": {
            "task": name,
            "type": with_it.config.tasks[name].type,
            "requires_instruction": with_it.config.tasks[name].requires_instruction,
            "training_examples": metadata.dataset_sizes[name],
            "train_seconds": round(metadata.train_seconds - earlier.train_seconds, 1),
            "scores": {system: scores[name] for system, scores in board.scores.items()},
            "main_metric": with_it.tasks[name].main_metric,
            "routing": {
                kind: _accuracies(new, inputs, f"{kind} inputs of {name}")[name]
                for kind, inputs in own.items()
                if kind is not InputKind.CONFLICTING and inputs
            },
        },
        "routing": {**routing, "n": {task: len(rows) for task, rows in older.items()}},
        "largest_fall": max(falls, default=0.0),
        "answers": _same_answers(old, new, older),
    }


def _examples(system: System, seed: int, limit: int) -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = {}
    for task in system.tasks:
        try:
            found[task] = task_examples(system, task, "validation", seed, limit)
        except DataError as error:
            logger.warning("%s is left out of the report: %s", task, error)
    return found


def _accuracies(predictor: Predictor, inputs: Sequence[RoutedInput], label: str) -> dict[str, float]:
    """Task → share of its inputs that are sent to it."""
    routed = route_inputs(predictor, inputs, label)
    right: dict[str, list[bool]] = {}
    for one, chosen, truth in zip(inputs, routed.probabilities.argmax(axis=1), routed.truth, strict=True):
        right.setdefault(one.task, []).append(bool(chosen == truth))
    return {task: sum(own) / len(own) for task, own in right.items()}


def _same_answers(old: Predictor, new: Predictor, older: Examples) -> dict[str, Any]:
    """Compare the answers, one input at a time: in a batch, other rows may change the order of sums."""
    asked = [(task, task_input(old.system, task, row)) for task, rows in older.items() for row in rows[:ANSWERS]]
    progress = InputProgress("answers of the older tasks", len(asked))
    same = 0
    for task, text in asked:
        first, second = (predictor.predict([text], [task])[0].answer for predictor in (old, new))
        same += first == second
        progress.advance(1)
    return {"n": len(asked), "identical": same}


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The report in a few lines of text."""
    added, routing = report["added"], report["routing"]
    metric = added["main_metric"]
    scores = ", ".join(f"{system} {scores[metric]:.4g}" for system, scores in added["scores"].items())
    lines = [f"{added['task']}: {metric} {scores} on {added['scores']['oracle']['n']} examples"]
    lines += [f"  {kind} inputs routed to it: {accuracy:.4f}" for kind, accuracy in added["routing"].items()]
    for kind, before in routing["before"].items():
        after = routing["after"][kind]
        lines += [f"  {kind} inputs of {task}: {before[task]:.4f} before, {after[task]:.4f} after" for task in before]
    lines.append(f"  largest fall of an older task: {report['largest_fall']:.2f} points")
    answers = report["answers"]
    lines.append(f"  answers of the older tasks: {answers['identical']} of {answers['n']} identical")
    return lines
