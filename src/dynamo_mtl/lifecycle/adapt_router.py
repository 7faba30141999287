"""Teaches a trained router what else belongs to one of its tasks, from texts without answers. Nothing else changes.

The router gets a further branch, which widens the task. It learns these texts against the remembered inputs of the
other tasks, of which it may take a quarter of a percent.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from dynamo_mtl.checkpoint.folder import MEMORY
from dynamo_mtl.config.load import BRANCH
from dynamo_mtl.config.training_config import PipelineConfig
from dynamo_mtl.errors import CheckpointError, ConfigError, DataError
from dynamo_mtl.inference.feedback import Feedback, is_feedback, read_feedback
from dynamo_mtl.lifecycle.branch_phase import (
    LOST,
    BranchInputs,
    covering,
    last_branch,
    split_inputs,
    teach_branch,
)
from dynamo_mtl.messages import did_you_mean
from dynamo_mtl.model.ood import RouterMemory
from dynamo_mtl.model.router import Router
from dynamo_mtl.router_inputs import RouterInput, RouterInputs, with_others
from dynamo_mtl.storage import new_folder, only_writer
from dynamo_mtl.system import System, load_system
from dynamo_mtl.tasks.tables import TRAIN
from dynamo_mtl.tasks.task import Example
from dynamo_mtl.tasks.unlabelled import unlabelled_examples
from dynamo_mtl.training.metrics_log import MetricsLog
from dynamo_mtl.training.router_memory import trunk_features

logger = logging.getLogger(__name__)

MOST = 2000
"""Texts that are learned from; of more, a random choice."""
LEAST = 8
"""Fewer texts say too little."""
JUDGED = 5
"""Every fifth text is held out, to judge the result by."""
MORE_VIEWS = 3
"""Changed forms of each text that are learned, beyond those of every training text."""
UPDATES = 400
"""Of the branch, at least."""


@dataclass(frozen=True)
class Adapted:
    """What a router has learned."""

    task: str
    held_out: int
    """Every fifth input of the file, which was only judged by."""
    right_before: float
    """Share of the held-out texts that were sent to the task before."""
    right_after: float
    """The same share afterwards."""
    remembered: int
    """Remembered inputs of the other tasks that were held out."""
    lost: int
    """Of these, inputs that are now sent to the task, and were not before."""

    def lines(self) -> list[str]:
        """In a few lines of text."""
        return [
            f"{self.task}: {self.held_out} of its inputs were held out; "
            f"share that is sent to it: {self.right_before:.3f} before, {self.right_after:.3f} after",
            f"  lost by other tasks: {self.lost} of {self.remembered} remembered inputs",
        ]


def adapt_router(checkpoint: Path, output: Path, config: PipelineConfig, task: str, inputs: Path) -> Adapted:
    """Teach the router that the texts of a file belong to a task, and save the model.

    Adapters, heads and all that the router has learned before stay bit-identical.

    Args:
        checkpoint: a trained model.
        output: folder for the new model; it must not exist yet.
        config: the checkpoint's configuration.
        task: whose inputs they are.
        inputs: a table with the task's columns of inputs, a text file with a text on each line, or the feedback that a
            server has collected.

    Raises:
        ConfigError: no such task, or a folder that cannot be written.
        DataError: a file that cannot be read, or too few texts.
        CheckpointError: an unusable checkpoint, or one that remembers no inputs.
    """
    place = new_folder(output)
    lock = only_writer(place, "--output", inside=False)
    try:
        return _adapted(checkpoint, place, config, task, inputs)
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _adapted(checkpoint: Path, output: Path, config: PipelineConfig, task: str, inputs: Path) -> Adapted:
    set_seed(config.training.seed)
    accelerator = Accelerator()
    system, metadata = load_system(checkpoint, accelerator.device, config, for_training=True)
    if task not in system.tasks:
        raise ConfigError(f"--task: no task '{task}'; {did_you_mean(task, system.tasks)}")
    known = system.model.memory
    if known is None:
        raise CheckpointError(
            f"{checkpoint}: no {MEMORY}, so nothing says what belongs to the other tasks; train its router with this "
            "version: dynamo train CONFIG --phase 2"
        )
    route = system.route_of(task)
    if not bool((known.routes != route).any()):
        raise ConfigError(f"--task: the model has no other task than '{task}', so there is nothing to teach its router")
    added, validation = _read(system, task, inputs, config)
    before = _share(system.model.router, validation, route)
    others = known.select(known.routes != route)
    branch_inputs = split_inputs(added, others, route, validation)
    first = system.model.router.eval()
    system.model.router = first.with_branch(BRANCH, route)
    _learn(system, branch_inputs, config, accelerator)
    lost = _limit(system.model.router, first, branch_inputs.held_out, route)
    settings = config.training
    memory = known.joined(added.sample(settings.router.memory_examples, settings.seed))
    system.model.memory = memory.sample(2 * settings.router.memory_examples, settings.seed)
    system.model.ood.extend(branch_inputs.own[: settings.router.novelty_examples], validation)
    calibration = covering(metadata.calibration, system, _sent_to(system.model.router, validation, route))
    stored = config.model_copy(update={"router": system.model.router.config})
    changed = replace(metadata, format=type(metadata).format, calibration=calibration)
    system.save(output, changed, stored.to_yaml())
    logger.info("saved %s", output)
    after = _share(system.model.router, validation, route)
    return Adapted(task, len(validation), before, after, len(branch_inputs.held_out), lost)


def _read(system: System, task: str, inputs: Path, config: PipelineConfig) -> tuple[RouterMemory, Tensor]:
    """Features of the inputs of a file to learn from, in several forms, and ``(n, features)`` of those to judge by.

    Raises:
        DataError: it cannot be read, or has too few inputs.
    """
    rng = np.random.default_rng([config.training.seed, 12])
    route, size = system.route_of(task), system.model.router.feature_size
    if is_feedback(inputs):
        given = read_feedback(inputs, system, task)
    else:
        own_folder = config.data.model_copy(update={"root": None})
        texts = unlabelled_examples(system.tasks[task], str(inputs), TRAIN, own_folder, MOST)
        given = Feedback([(text, None) for text in texts], torch.zeros(0, size), torch.zeros(0, dtype=torch.bool))
    count = len(given.inputs) + len(given.features)
    if count < LEAST:
        raise DataError(f"{inputs}: has {count} texts of task '{task}'; give at least {LEAST}, better a hundred")
    order = rng.permutation(count)[:MOST].tolist()
    judged, learned = order[::JUDGED], [number for place, number in enumerate(order) if place % JUDGED]

    def with_text(numbers: Sequence[int]) -> list[tuple[Example, str | None]]:
        return [given.inputs[number] for number in numbers if number < len(given.inputs)]

    def without(numbers: Sequence[int]) -> list[int]:
        return [number - len(given.inputs) for number in numbers if number >= len(given.inputs)]

    forms, asked = _forms(system, task, with_text(learned), rng), _asked(system, task, with_text(judged), rng)
    features, routes, is_plain = _encoded(system, forms, config.training.token_budget)
    validation, _, _ = _encoded(system, asked, config.training.token_budget)
    own = without(learned)
    features = torch.cat([features, given.features[own].to(features.device)])
    routes = torch.cat([routes, torch.full((len(own),), route, device=routes.device)])
    is_plain = torch.cat([is_plain, given.is_plain[own].to(is_plain.device)])
    validation = torch.cat([validation, given.features[without(judged)].to(validation.device)])
    return RouterMemory(features, routes, torch.full_like(routes, route), is_plain), validation


def _forms(
    system: System, task: str, texts: Sequence[tuple[Example, str | None]], rng: np.random.Generator
) -> list[RouterInput]:
    """The forms in which texts are learned. One with an instruction of its own is learned as it is."""
    making = RouterInputs(system)
    drawn = [making.instructed(task, text, instruction) for text, instruction in texts if instruction is not None]
    for text, another in with_others([text for text, instruction in texts if instruction is None], rng):
        drawn += making.of_example(task, text, rng, another, system.config.data.crossed_rate)
        views = (making.viewed(task, text, rng, another) for _ in range(MORE_VIEWS))
        drawn += [view for view in views if view is not None]
    return drawn


def _asked(
    system: System, task: str, texts: Sequence[tuple[Example, str | None]], rng: np.random.Generator
) -> list[RouterInput]:
    """The inputs to judge by: as they are, or with an instruction where the task requires one."""
    judging = RouterInputs(system, "validation")
    needed = judging.requires_instruction(task)
    return [
        judging.instructed(task, text, instruction or (judging.draw_instruction(task, rng) if needed else None))
        for text, instruction in texts
    ]


def _encoded(system: System, drawn: list[RouterInput], budget: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, right adapters, and which inputs are plain; of none, empty tensors."""
    if not drawn:
        none = torch.zeros(0, dtype=torch.long, device=system.device)
        return torch.zeros(0, system.model.router.feature_size, device=system.device), none, none.bool()
    making = RouterInputs(system)
    features, routes = trunk_features(system, [making.encode(one) for one in drawn], budget)
    return features, routes, torch.tensor([one.instruction is None for one in drawn], device=features.device)


def _learn(system: System, inputs: BranchInputs, config: PipelineConfig, accelerator: Accelerator) -> None:
    """Train the last branch of the router."""
    settings = config.training
    updates = math.ceil(max(len(inputs.own), len(inputs.negatives)) / max(1, settings.router.feature_batch_size // 2))
    epochs = max(settings.router.feature_epochs, math.ceil(UPDATES / updates))
    of_router = settings.router.model_copy(update={"feature_epochs": epochs})
    settings = settings.model_copy(update={"router": of_router})
    log = MetricsLog(Path(config.log_dir), accelerator)
    try:
        teach_branch(system, inputs, settings, accelerator, log)
    finally:
        log.close()
    system.model.router.eval()


@torch.no_grad()
def _limit(router: Router, before: Router, others: Tensor, route: int) -> int:
    """Lower the last branch's bias until the task takes at most ``LOST`` of other tasks' inputs; return how many.

    A branch that widens a task adds to a share that is there already, so it can decide below its own odds of one.
    """
    last = last_branch(router).mlp[-1]
    assert isinstance(last, torch.nn.Linear)
    was_own = before(others).weights.argmax(dim=1) == route
    while True:
        taken = int(((router(others).weights.argmax(dim=1) == route) & ~was_own).sum())
        if taken <= math.floor(LOST * len(others)):
            return taken
        last.bias.sub_(0.25)


@torch.no_grad()
def _share(router: Router, features: Tensor, route: int) -> float:
    """Share of inputs that are sent to an adapter."""
    return float((router(features).weights.argmax(dim=1) == route).float().mean())


@torch.no_grad()
def _sent_to(router: Router, features: Tensor, route: int) -> Tensor:
    """Those inputs that are sent to an adapter; all if none is. A stray one must not decide how sure is sure enough."""
    own = features[router(features).weights.argmax(dim=1) == route]
    return own if len(own) else features
