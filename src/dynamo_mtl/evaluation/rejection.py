"""Measure whether inputs of an unknown task are recognized as such. Each task in turn plays the unknown one."""

from __future__ import annotations

import logging

import numpy as np

from dynamo_mtl.config.training_config import TrainingConfig
from dynamo_mtl.metrics.routing import auroc
from dynamo_mtl.tasks.tables import first_examples
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.router_memory import collect_router_memory, trunk_features

logger = logging.getLogger(__name__)

INPUTS = 500
"""Validation inputs of each task that are scored."""


def score_rejection(source: ExampleSource, config: TrainingConfig, coverage: float) -> dict[str, dict[str, float]]:
    """Treat each task in turn as unknown, and measure how well its plain inputs are separated from those of the others.

    Args:
        source: system and its training and validation data.
        config: seed, examples and token budget.
        coverage: share of known inputs to keep. The threshold is set on half of them.

    Returns:
        Task → ``auroc`` of familiarity; ``rejected``, the share of its inputs beyond the threshold;
        ``false_rejected``, the same share of the other half of the known inputs; and ``n``. Tasks that require an
        instruction have no plain inputs and are left out.
    """
    system = source.system
    names = [n for n in system.tasks if not system.config.tasks[n].requires_instruction]
    if len(names) < 2:
        return {}
    known = collect_router_memory(source, config)
    plain = {
        name: trunk_features(
            system,
            [
                system.encode_for_router(e.text, e.context, None, name)
                for e in first_examples(source.tables[name].validation, INPUTS)
            ],
            config.token_budget,
        )[0]
        for name in names
    }
    found: dict[str, dict[str, float]] = {}
    for name in names:
        ood = known.fit(config.seed, unknown=system.route_of(name))
        unknown = ood(plain[name]).cpu().numpy()
        others = [ood(plain[other]).cpu().numpy() for other in names if other != name]
        limit = np.quantile(np.concatenate([d[::2] for d in others]), coverage)
        kept = np.concatenate([d[1::2] for d in others])
        found[name] = {
            "auroc": auroc(np.concatenate(others), unknown),
            "rejected": float((unknown > limit).mean()),
            "false_rejected": float((kept > limit).mean()),
            "n": len(unknown),
        }
        logger.info("left out %s: AUROC of rejection %.3f", name, found[name]["auroc"])
    return found
