"""Lists the stages of training that the phases consist of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dynamo_mtl.config.training_config import PipelineConfig
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.metrics_log import NOTHING_AHEAD, Ahead
from dynamo_mtl.training.phases.phase import Phase
from dynamo_mtl.training.phases.phase_1_adapters import AdapterPhase, adapter_updates, batch_size
from dynamo_mtl.training.phases.phase_2_router import (
    FeaturePhase,
    HeldOut,
    MixturePhase,
)
from dynamo_mtl.training.phases.phase_3_joint import JointPhase
from dynamo_mtl.training.phases.shared_adapter import SharedPhase

FOLDERS = {1: "phase_1", 2: "phase_2", 3: "final_model"}
"""Checkpoint folder of each phase."""
SHARED = 3
"""Number of the only phase of a model without routed adapters; it gives the final model."""


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one optimizer."""

    phase: int
    make: Callable[[dict[str, Any]], Phase]
    """Creates the phase from its saved ``Phase.state``, or from ``{}`` at first. Must not use the random state."""
    workers: int
    ahead: Ahead = NOTHING_AHEAD


def make_stages(
    source: ExampleSource, config: PipelineConfig, phases: Sequence[int], held_out: Callable[[], HeldOut]
) -> list[Stage]:
    """Return the stages of the given phases, in order."""
    settings, workers = config.training, config.data.num_workers
    if config.model.adapters != "routed":
        return [Stage(SHARED, lambda _: SharedPhase(source, settings), workers)]
    stages: list[Stage] = []
    if 1 in phases:
        tasks = list(source.system.tasks)
        work = [adapter_updates(source, task, settings) * batch_size(source, task, settings) for task in tasks]
        for number, task in enumerate(tasks):
            place = f"task {number + 1} of {len(tasks)}"
            later = sum(work[number + 1 :]) / batch_size(source, task, settings)
            ahead = Ahead(place, later)
            stages.append(Stage(1, lambda _, task=task: AdapterPhase(source, task, settings), workers, ahead))
    if 2 in phases:
        if not settings.routing_weight and not settings.router.mixture_steps:
            raise ConfigError(
                "training.router.mixture_steps: found 0 with training.routing_weight 0, so that phase 2 would train "
                "nothing; give one of them"
            )
        if settings.routing_weight:  # without the known task, there is nothing to learn from features alone
            stages.append(Stage(2, lambda _: FeaturePhase(source, settings, held_out()), 0))
        if settings.router.mixture_steps:
            stages.append(Stage(2, lambda _: MixturePhase(source, settings, held_out()), workers))
    if 3 in phases and settings.joint.max_steps:
        stages.append(Stage(3, lambda known: JointPhase(source, settings, held_out(), known.get("ranked")), workers))
    return stages
