"""Score a trained router: on four kinds of input, on inputs of no task, and by the cost of wrong routes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dynamo_mtl.config.training_config import PipelineConfig
from dynamo_mtl.errors import ConfigError, DataError
from dynamo_mtl.evaluation.cross_adapter import score_cross_adapter
from dynamo_mtl.evaluation.inputs import Examples, make_routed_inputs
from dynamo_mtl.evaluation.rejection import score_rejection
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.inference.scoring import RoutedInput, route_inputs
from dynamo_mtl.metrics.routing import confusion_matrix, length_router, routing_scores
from dynamo_mtl.router_inputs import InputKind
from dynamo_mtl.system import System
from dynamo_mtl.tasks.tables import first_examples
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.run import load_tables

logger = logging.getLogger(__name__)

LENGTH_SAMPLE = 1000
"""Training inputs of each task that the length-only router learns from."""


def score_kinds(predictor: Predictor, kinds: Mapping[InputKind, Sequence[RoutedInput]]) -> dict[str, Any]:
    """Score the routing of every kind of input.

    Returns:
        ``tasks``; ``calibration``; scores of each ``InputKind``, as far as there are such inputs; ``confusion`` of the
        plain ones.
    """
    system = predictor.system
    routing: dict[str, Any] = {"tasks": list(system.tasks), "calibration": asdict(predictor.calibration)}
    for kind, inputs in kinds.items():
        if inputs:
            routed = route_inputs(predictor, inputs, f"routing of {kind.shown} inputs")
            routing[kind] = routing_scores(routed.probabilities, routed.truth, routed.rejected)
            if kind is InputKind.PLAIN:
                predicted = routed.probabilities.argmax(axis=1).tolist()
                routing["confusion"] = confusion_matrix(predicted, routed.truth, len(system.tasks))
    return routing


def score_routing(predictor: Predictor, examples: Examples, config: PipelineConfig) -> dict[str, Any]:
    """Compute all scores of a router.

    Args:
        predictor: the routed system.
        examples: examples of every task to score on.
        config: names the training data. If that is missing, scores that need it are left out.

    Returns:
        Those of ``score_kinds``; ``misroutes``; ``length_only``, what input length alone would give; ``rejection`` of
        unknown tasks.
    """
    system = predictor.system
    kinds = make_routed_inputs(system, examples, config.training.seed)
    routing = score_kinds(predictor, kinds)
    routing["misroutes"] = score_cross_adapter(predictor, examples)
    try:
        source = ExampleSource(system, load_tables(config, system.tasks))
    except (ConfigError, DataError) as error:
        logger.warning("what needs the training data is left out: %s", error)
        return routing
    routing["rejection"] = score_rejection(source, config.training, predictor.calibration.coverage)
    if kinds[InputKind.PLAIN]:
        routing["length_only"] = _score_length_router(source, kinds[InputKind.PLAIN])
    return routing


def _score_length_router(source: ExampleSource, plain: Sequence[RoutedInput]) -> dict[str, float]:
    system = source.system
    tasks = list(dict.fromkeys(i.task for i in plain))
    train = [first_examples(source.tables[name].train, LENGTH_SAMPLE) for name in tasks]
    learned = [[_length(system, TextInput(e.text, e.context)) for e in rows] for rows in train]
    guessed = [tasks[g] for g in length_router(learned, [_length(system, i.input) for i in plain])]
    one_hot = np.eye(len(system.tasks))[[system.route_of(g) for g in guessed]]
    return routing_scores(one_hot, [system.route_of(i.task) for i in plain])


def _length(system: System, text: TextInput) -> int:
    return sum(len(w.ids) for w in system.source.encode(text.text, text.context, text.instruction).windows)
