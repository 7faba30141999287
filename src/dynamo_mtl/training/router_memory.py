"""Computes router features of training inputs, and samples those that define which inputs are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dynamo_mtl.config.training_config import TrainingConfig
from dynamo_mtl.distributed import all_reduce_sum, world
from dynamo_mtl.inference.scoring import InputProgress
from dynamo_mtl.model.batch import to_device
from dynamo_mtl.model.ood import RouterMemory
from dynamo_mtl.out_of_memory import run_in_groups
from dynamo_mtl.router_inputs import RouterInput
from dynamo_mtl.system import System
from dynamo_mtl.tasks.encoding import EncodedExample
from dynamo_mtl.training.examples import ExampleSource


@torch.no_grad()
def trunk_features(system: System, examples: list[EncodedExample], budget: int) -> tuple[Tensor, Tensor]:
    """Router features ``(n, features)`` and true adapters ``(n,)`` of inputs that only the router reads."""
    features = torch.zeros(len(examples), system.model.router.feature_size, device=system.device)
    own = world().share(range(len(examples)))
    progress = InputProgress("router features", len(own))

    def run(group: Sequence[int]) -> None:
        members = [own[i] for i in group]
        packed = to_device(system.collate([examples[i] for i in members]), system.device)
        features[members] = system.model.trunk(packed.batch).features
        progress.advance(len(group))

    run_in_groups([examples[i].tokens for i in own], budget, run)
    # Each row is zero except in the process that computed it, so the sum collects all rows.
    return all_reduce_sum(features), torch.tensor([e.route for e in examples], device=system.device)


def collect_router_memory(
    source: ExampleSource, config: TrainingConfig, tasks: Sequence[str] | None = None
) -> RouterMemory:
    """Draw ``router.novelty_examples`` training texts of each task, or of each in ``tasks``; compute their features."""
    rng = np.random.default_rng([config.seed, 4])
    system = source.system
    drawn: list[RouterInput] = []
    for task in tasks or system.tasks:
        another = source.drawing(task, rng.spawn(1)[0])
        for row in source.router_rows(task, config.router.novelty_examples, rng):
            drawn += source.inputs.of_example(
                task, source.row(task, row), rng, another, system.config.data.crossed_rate
            )
    examples = [source.inputs.encode(one) for one in drawn]
    features, routes = trunk_features(system, examples, config.token_budget)
    origins = torch.tensor([system.route_of(one.origin) for one in drawn], device=features.device)
    is_plain = torch.tensor([one.instruction is None for one in drawn], device=features.device)
    return RouterMemory(features, routes, origins, is_plain)
