"""Measures how far the confidence of answers can be trusted, on rows that did not calibrate it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynamo_mtl.config.training_config import PipelineConfig
from dynamo_mtl.evaluation.inputs import task_input
from dynamo_mtl.metrics.routing import (
    CALIBRATION_BINS,
    area_under_risk_coverage,
    brier_score,
    chance_calibration_error,
    expected_calibration_error,
)
from dynamo_mtl.system import System
from dynamo_mtl.tasks.tables import all_examples, open_task_table, rows_hash
from dynamo_mtl.training.answer_calibration import collect_evidence
from dynamo_mtl.training.examples import split_validation

Confidence = dict[str, float]


def score_confidence(
    system: System, config: PipelineConfig, split: str, seed: int, tasks: Sequence[str]
) -> dict[str, Confidence]:
    """Calibration of the answers of every task that has labels, with its own adapter.

    On the validation data that calibrated a task, only the other half of the rows is scored.

    Returns:
        Task → ``n`` labels, ``temperature``, and ``ece``, ``brier`` and ``aurc`` without it (``_before``) and with it
        (``_after``); ``ece_chance``, what perfectly calibrated answers would show on so many labels. Each label of
        several is a decision of its own, and so is each token.
    """
    found: dict[str, Confidence] = {}
    for task in tasks:
        of_task = system.tasks[task]
        table = open_task_table(of_task, split, config.data, seed)
        if of_task.calibration.rows and rows_hash(table) == of_task.calibration.data:
            table, _ = split_validation(of_task, table)
        encoded = [
            system.encode(one, task, task_input(system, task, one).instruction).without_shallow_windows()
            for one in all_examples(table)
        ]
        evidence = collect_evidence(system, encoded, config.training.token_budget)
        if evidence is not None:
            found[task] = confidence_scores(*evidence, of_task.calibration.temperature)
    return found


def confidence_scores(logits: Tensor, truth: Tensor, temperature: float) -> Confidence:
    """The scores of ``score_confidence`` for one task: logits ``(n, outcomes)``, right outcomes ``(n,)``."""
    scores: Confidence = {"n": len(truth), "ece_bins": CALIBRATION_BINS, "temperature": temperature}
    for when, divisor in (("before", 1.0), ("after", temperature)):
        probabilities = torch.softmax(logits.double() / divisor, dim=1)
        best = probabilities.max(dim=1)
        confidence, correct = best.values.numpy(), (best.indices == truth).numpy()
        scores[f"ece_{when}"] = expected_calibration_error(confidence, correct)
        scores[f"brier_{when}"] = brier_score(probabilities.numpy(), truth.tolist())
        scores[f"aurc_{when}"] = area_under_risk_coverage(confidence, correct)
        scores["ece_chance"] = chance_calibration_error(confidence)
    return scores
