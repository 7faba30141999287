"""Calibrates the answers of every task on validation rows that chose nothing else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.distributed import join_shares, world
from dynamo_mtl.model.batch import to_device
from dynamo_mtl.model.calibration import NEVER, AnswerCalibration
from dynamo_mtl.out_of_memory import run_in_groups
from dynamo_mtl.system import System
from dynamo_mtl.tasks.encoding import EncodedExample
from dynamo_mtl.tasks.tables import rows_hash
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.step import judge_examples

logger = logging.getLogger(__name__)

FEWEST = 20
"""Fewest rows to fit on. With fewer, the answers stay as they are."""


def calibrate_answers(source: ExampleSource, task: str, budget: int) -> AnswerCalibration:
    """Fit and set the calibration of a task's answers, with its own adapter.

    Returns:
        The calibration; the default one where the task has no calibrated probabilities, or too few rows.
    """
    system, of_task = source.system, source.system.tasks[task]
    of_task.calibration = AnswerCalibration()
    rows = source.calibration(task)
    deep = [example.without_shallow_windows() for example in rows.encoded]
    found = collect_evidence(system, deep, budget) if len(deep) >= FEWEST else None
    if found is None:
        if len(deep) < FEWEST:
            logger.info("%s  %d rows are too few to calibrate its answers; %d are needed", task, len(deep), FEWEST)
        return of_task.calibration
    of_task.calibration = of_task.calibrate(*found)
    if of_task.tunes_answers:
        judged = judge_examples(system, deep, rows.sources, budget)
        answers = [one.answer for one in judged if one.answer is not None]
        of_task.calibration = of_task.tune(answers, rows.examples)
    if of_task.calibration.abstain_below == NEVER:
        logger.warning("%s  no part of the answers reaches the wanted precision, so every answer is withheld", task)
    table = source.tables[task].validation
    of_task.calibration = replace(of_task.calibration, rows=len(deep), data=rows_hash(table))
    logger.info("%s  answers calibrated on %d rows: temperature %.3f", task, len(deep), of_task.calibration.temperature)
    return of_task.calibration


@torch.inference_mode()
def collect_evidence(system: System, examples: Sequence[EncodedExample], budget: int) -> tuple[Tensor, Tensor] | None:
    """Logits ``(labels, outcomes)`` of labelled examples of one task with its own adapter, and the right outcomes.

    Missing outcomes are minus infinity. None where the task has no such evidence.
    """
    system.model.eval()
    own = world().share(examples)
    parts: dict[int, tuple[Tensor, Tensor]] = {}

    def run(group: Sequence[int]) -> None:
        packed = to_device(system.collate([own[i] for i in group]), system.device)
        output = system.model(packed.batch, system.model.oracle_weights(packed.routes), top_k=1)
        (view,) = packed.views
        found = system.tasks[view.task].evidence(system.model.head(view.task), output.hidden, view)
        if found is not None:
            logits, truth = found
            per_example = len(truth) // len(group)
            rows = view.label_rows if len(view.label_rows) == len(truth) else None
            for place, member in enumerate(view.examples.tolist()):
                chosen = rows == place if rows is not None else slice(place * per_example, (place + 1) * per_example)
                parts[group[member]] = (logits[chosen].float().cpu(), truth[chosen].cpu())

    run_in_groups([example.tokens for example in own], budget, run)
    found = join_shares([parts.get(number) for number in range(len(own))])
    known = [part for part in found if part is not None]
    if not known:
        return None
    widest = max(logits.shape[1] for logits, _ in known)
    padded = [F.pad(logits, (0, widest - logits.shape[1]), value=float("-inf")) for logits, _ in known]
    return torch.cat(padded), torch.cat([truth for _, truth in known])
