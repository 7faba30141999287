"""Phase 2 trains the router on mixed tasks, over frozen adapters.

The router first trains on pooled trunk features. They are computed once, so an epoch takes moments. A few steps of the
whole objective through the mixture of frozen adapters follow, so that the router learns how its weights affect the
answers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynamo_mtl.config.training_config import TrainingConfig
from dynamo_mtl.data.mixture import MixedOrder
from dynamo_mtl.metrics.routing import collapse_warnings, confused_pairs, confusion_matrix
from dynamo_mtl.model.calibration import Calibration, fit_calibration
from dynamo_mtl.router_inputs import InputKind, RouterInputs, with_others
from dynamo_mtl.system import System
from dynamo_mtl.tasks.encoding import EncodedExample
from dynamo_mtl.tasks.registry import same_group
from dynamo_mtl.tasks.task import Example
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.objective import LOSS, Objective
from dynamo_mtl.training.optimizer import router_group
from dynamo_mtl.training.phases.mixed import MixedDraw
from dynamo_mtl.training.phases.phase import SCORE, Phase
from dynamo_mtl.training.router_memory import trunk_features
from dynamo_mtl.training.step import StepBatch, mixture_backward, read_routing

logger = logging.getLogger(__name__)


HeldOut = dict[str, tuple[Tensor, Tensor]]
"""Router features and true adapters of validation inputs, by their kind."""
TIE_BREAK = 1e-3
"""Weight of the cross entropy in the score, which is otherwise an accuracy."""


@dataclass(frozen=True)
class FeatureBatch:
    """Cached features of one update."""

    features: Tensor
    routes: Tensor
    twins: Tensor
    tokens: int = 0
    largest: int = 0
    """There are no tokens here to split."""

    def within(self, budget: int) -> FeatureBatch:
        """Itself: features are small."""
        return self


def routing_validation(system: System, held_out: HeldOut) -> dict[str, float]:
    """Return the router's accuracy on each kind of validation input, and warn if the routing collapses.

    The score is the accuracy on plain and instructed inputs, which belong to the task that they come from; the cross
    entropy breaks ties. Crossed inputs are left out of the score: they are ambiguous, and would pull the choice of the
    best state away from the other inputs.
    """
    system.model.eval()
    values: dict[str, float] = {}
    right: list[Tensor] = []
    losses: list[Tensor] = []
    everything: list[Tensor] = []
    for kind, (features, routes) in held_out.items():
        with torch.no_grad():
            weights = system.model.router(features).weights
        correct = (weights.argmax(dim=1) == routes).float()
        everything.append(weights)
        values[f"accuracy_{kind}"] = float(correct.mean())
        if kind != InputKind.CONFLICTING:
            right.append(correct)
            losses.append(torch.nn.functional.nll_loss(weights.clamp_min(1e-9).log(), routes, reduction="none"))
    loss = float(torch.cat(losses).mean())
    truth = torch.cat([routes for _, routes in held_out.values()]).tolist()
    for warning in collapse_warnings(torch.cat(everything).cpu().numpy(), truth, list(system.tasks)):
        logger.warning("routing of validation inputs: %s", warning)
    return {SCORE: float(torch.cat(right).mean()) - TIE_BREAK * loss, "routing_loss": loss, **values}


@torch.no_grad()
def calibrate(system: System, held_out: HeldOut) -> Calibration:
    """Calibrate the router's confidence on validation inputs of all kinds, in the proportions in which they occur.

    This also records how far these inputs lie from the known ones.
    """
    system.model.eval()
    system.model.ood.calibrate(torch.cat([features for features, _ in held_out.values()]))
    router = system.model.router
    logits = torch.cat([router(features).logits for features, _ in held_out.values()]) / router.temperature
    routes = torch.cat([routes for _, routes in held_out.values()])
    found = fit_calibration(logits, routes, router.config.coverage)
    logger.info("confidence: temperature %.3f, rejected below %.3f", found.temperature, found.threshold)
    return found


@torch.no_grad()
def warn_of_confusions(system: System, held_out: HeldOut) -> None:
    """Name the tasks whose plain validation inputs the router confuses, with what helps."""
    if InputKind.PLAIN not in held_out:
        return
    features, truth = held_out[InputKind.PLAIN]
    sent, names = system.model.router(features).logits.argmax(dim=1).tolist(), list(system.tasks)
    confusion = confusion_matrix(sent, truth.tolist(), len(names))
    for sentence in confused_pairs(confusion, names, same_group(system.config.tasks)):
        logger.warning("%s", sentence)


class FeaturePhase(Phase):
    """Warm-up of the router on cached features: plain, instructed (two instructions), conflicting and viewed inputs."""

    def __init__(self, source: ExampleSource, config: TrainingConfig, held_out: HeldOut) -> None:
        self.name = "phase 2 router"
        self.source, self.config, self.held_out = source, config, held_out
        self.objective = Objective(config)
        rng = np.random.default_rng([config.seed, 2])
        examples: list[EncodedExample] = []
        self.twins: dict[int, int] = {}
        self.origins: list[tuple[str, int]] = []
        for task in source.system.tasks:
            first = len(examples)
            tokens = 0
            another = source.drawing(task, rng.spawn(1)[0])
            for row in source.router_rows(task, config.router.examples_per_task, rng):
                self._add(examples, task, row, rng, another)
                tokens += sum(example.tokens for example in examples[first:])
                first = len(examples)
                if tokens >= config.router.tokens_per_task:
                    break
        features, self.routes = trunk_features(source.system, examples, config.token_budget)
        self.features = features.half()  # the states are layer-normalised, so half precision is enough
        logger.info("%s  %d features cached", self.name, len(examples))
        # A task with long texts reaches its token limit early. In a proportional draw it would hardly be seen.
        tasks = np.array([source.system.route_of(task) for task, _ in self.origins])
        self.rows = [np.flatnonzero(tasks == task) for task in range(len(source.system.tasks))]
        sizes, batch_size = tuple(map(len, self.rows)), config.router.feature_batch_size
        exponent = source.system.config.data.sampling_exponent
        self.order = MixedOrder(sizes, batch_size, math.ceil(len(examples) / batch_size), exponent, config.seed)
        self.steps = config.router.feature_epochs * self.order.steps_per_epoch
        self.eval_every = min(config.eval_every, max(1, self.steps // 5))
        self.groups = [router_group(source.system.model, config.router_lr, config)]

    def _add(
        self,
        examples: list[EncodedExample],
        task: str,
        row: int,
        rng: np.random.Generator,
        another: Callable[[], Example],
    ) -> None:
        """Add one text in all the forms in which the router may see it."""
        example = self.source.row(task, row)
        inputs, rate = self.source.inputs, self.source.system.config.data.crossed_rate
        plain = inputs.plain(task, example)
        first, second = inputs.draw_two_instructions(task, rng)
        if second:
            self.twins[len(examples) + (plain is not None)] = len(examples) + (plain is not None) + 1
        instructed = [inputs.instructed(task, example, one) for one in (first, second) if one]
        conflicting = inputs.conflicting(task, example, rng, rate)
        drawn = (plain, *instructed, conflicting, inputs.viewed(task, example, rng.spawn(1)[0], another))
        examples += [inputs.encode(one) for one in drawn if one is not None]
        self.origins += [(task, row)] * (len(examples) - len(self.origins))

    def members(self, step: int) -> dict[str, list[int]]:
        """Task → rows whose texts a step draws."""
        found: dict[str, list[int]] = {}
        for number in self._numbers(step):
            task, row = self.origins[number]
            found.setdefault(task, []).append(row)
        return found

    def _numbers(self, step: int) -> list[int]:
        """The cached inputs of a step."""
        return [int(self.rows[task][place]) for task, place in self.order.batch(step)]

    def draw(self, step: int) -> FeatureBatch:
        """Features of a step, each with its twin if it has one."""
        rows = self._numbers(step)
        twinned = [place for place, row in enumerate(rows) if row in self.twins]
        pairs = [(place, len(rows) + number) for number, place in enumerate(twinned)]
        rows = rows + [self.twins[rows[place]] for place in twinned]
        twins = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        return FeatureBatch(self.features[rows].float(), self.routes[rows], twins)

    def backward(self, batch: FeatureBatch, step: int, scale: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The routing terms of the objective."""
        router = self.source.system.model.router
        router.schedule_temperature(step / max(1, self.steps - 1))
        routing = router(batch.features)
        read = read_routing(router, batch.features, routing, batch.routes, batch.twins)
        # Features are cheap, so every process computes with all of them and contributes an equal part.
        count = self.source.rank.size
        terms = {name: value / count for name, value in self.objective.routing_terms(read).items()}
        total = self.objective.total(terms, batch.features.device)
        scale(total).backward()
        return {LOSS: total.detach(), **{name: value.detach() for name, value in terms.items()}}

    def validate(self) -> dict[str, float]:
        """Routing of the validation inputs."""
        return routing_validation(self.source.system, self.held_out)


def validation_features(source: ExampleSource, config: TrainingConfig) -> HeldOut:
    """Features and true adapters of validation inputs, by kind."""
    kinds: dict[str, list[EncodedExample]] = {kind: [] for kind in InputKind}
    rng = np.random.default_rng([config.seed, 3])
    inputs, rate = RouterInputs(source.system, "validation"), source.system.config.data.crossed_rate
    for task in source.system.tasks:
        for example, another in with_others(source.choosing(task, config.eval_examples), rng):
            for one in inputs.of_example(task, example, rng, another, rate):
                kinds[one.kind].append(inputs.encode(one))
    budget = config.token_budget
    return {kind: trunk_features(source.system, own, budget) for kind, own in kinds.items() if own}


class MixturePhase(Phase):
    """Trains only the router, with the whole objective through the mixture of frozen adapters."""

    def __init__(self, source: ExampleSource, config: TrainingConfig, held_out: HeldOut) -> None:
        self.name = "phase 2 mixture"
        self.source, self.config, self.held_out = source, config, held_out
        self.objective = Objective(config)
        self.steps = config.router.mixture_steps
        self.eval_every = min(config.eval_every, max(1, self.steps // 2))
        self.mixed = MixedDraw(source, config, self.steps, seed=config.seed + 2)
        self.groups = [router_group(source.system.model, config.router_lr * config.joint.lr_factor, config)]

    def draw(self, step: int) -> StepBatch:
        """Mixed tasks."""
        return self.mixed.draw(step)

    def members(self, step: int) -> dict[str, list[int]]:
        """Task → rows that a step draws."""
        return self.mixed.members(step)

    def backward(self, batch: StepBatch, step: int, scale: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The whole objective with the router's own weights."""
        return mixture_backward(self.source.system, batch, self.objective, 1.0, scale)

    def validate(self) -> dict[str, float]:
        """Routing of the validation inputs."""
        return routing_validation(self.source.system, self.held_out)
