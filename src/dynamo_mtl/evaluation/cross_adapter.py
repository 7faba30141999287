"""Measure what a wrong route costs: score every task under every adapter."""

from __future__ import annotations

import torch

from dynamo_mtl.evaluation.inputs import Examples, task_input
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.scoring import predict_examples

INPUTS = 100
"""Examples of each task; every one is answered once under each adapter."""


def score_cross_adapter(predictor: Predictor, examples: Examples) -> dict[str, list[list[float]]]:
    """Main metric of task i when its inputs are sent to adapter j.

    Returns:
        ``routed`` also uses the head of j, as after a wrong route; it is 0 where j gives answers of another type.
        ``adapter_only`` keeps the head of i, which shows how interchangeable adapters are. Both are
        ``(tasks, tasks)``, on the first ``INPUTS`` examples.
    """
    names = list(predictor.system.tasks)
    types = [task.type for task in predictor.system.tasks.values()]
    swapped = [[_score(predictor, task, examples, task, other) for other in names] for task in names]
    routed = [[0.0 for _ in names] for _ in names]
    for i, task in enumerate(names):
        for j, other in enumerate(names):
            if types[i] == types[j]:
                routed[i][j] = swapped[i][j] if i == j else _score(predictor, task, examples, other, other)
    return {"routed": routed, "adapter_only": swapped}


def _score(predictor: Predictor, task: str, examples: Examples, head: str, adapter: str) -> float:
    """Main metric of a task's examples under a head and an adapter."""
    system = predictor.system
    rows = examples[task][:INPUTS]
    inputs = [task_input(system, task, row) for row in rows]
    routes = torch.full((len(rows),), system.route_of(adapter))
    weights = torch.nn.functional.one_hot(routes, len(system.tasks)).float()
    label = f"{task} with the adapter of {adapter}"
    made = predict_examples(predictor, inputs, [head] * len(rows), weights, label)
    of_task = system.tasks[task]
    return of_task.score([p.answer for p in made], rows)[of_task.main_metric]
