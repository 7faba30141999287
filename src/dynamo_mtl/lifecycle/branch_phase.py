"""Trains the router's branch for a task that is added to a trained model, on features alone.

The older tasks are present only as remembered features (``RouterMemory``), which are negative examples. So are the
added task's own texts with another task's instruction and, if the task requires an instruction, without one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.config.training_config import TrainingConfig
from dynamo_mtl.model.calibration import Calibration
from dynamo_mtl.model.ood import OutOfDistribution, RouterMemory
from dynamo_mtl.model.router import Branch, Router
from dynamo_mtl.system import System
from dynamo_mtl.training.loop import run_phase
from dynamo_mtl.training.metrics_log import MetricsLog
from dynamo_mtl.training.objective import LOSS
from dynamo_mtl.training.optimizer import Group
from dynamo_mtl.training.phases.phase import SCORE, Phase
from dynamo_mtl.training.phases.phase_2_router import FeatureBatch

HELD_OUT = 5
"""Every fifth remembered input is held out, to measure how many inputs the added task takes from the others."""
LOST = 0.0025
"""Share of held-out remembered inputs that the added task may take."""


@dataclass(frozen=True)
class BranchInputs:
    """Router features of inputs that belong to an added task and of inputs that do not, ``(n, features)`` each."""

    own: Tensor
    other: Tensor
    """The added task's texts in forms that do not belong to it; may be empty."""
    remembered: Tensor
    own_validation: Tensor

    @property
    def known(self) -> Tensor:
        """Remembered features to learn from."""
        return self.remembered[torch.arange(len(self.remembered)) % HELD_OUT != 0]

    @property
    def held_out(self) -> Tensor:
        """Remembered features to judge by."""
        return self.remembered[::HELD_OUT]

    @property
    def negatives(self) -> Tensor:
        """All training features that do not belong to the task."""
        return torch.cat([self.known, self.other])


def split_inputs(added: RouterMemory, remembered: RouterMemory, route: int, validation: Tensor) -> BranchInputs:
    """Collect the features that a branch learns from.

    Args:
        added: features of the added task's texts.
        remembered: features of the older tasks, as stored in the checkpoint.
        route: the added task's adapter.
        validation: ``(n, features)`` of the added task's validation inputs.
    """
    own = added.routes == route
    return BranchInputs(added.features[own], added.features[~own], remembered.features, validation)


class BranchPhase(Phase):
    """Trains one branch on features. Half of every batch belongs to the task, half does not."""

    def __init__(self, router: Router, inputs: BranchInputs, config: TrainingConfig) -> None:
        """
        Args:
            router: whose last branch is trained.
            inputs: what it learns from.
            config: learning rate, epochs and seed.
        """
        self.name = "added task router"
        self.router, self.inputs, self.config = router, inputs, config
        self.half = max(1, config.router.feature_batch_size // 2)
        self.negatives = inputs.negatives
        rounds = math.ceil(max(len(inputs.own), len(self.negatives)) / self.half)
        self.steps = rounds * config.router.feature_epochs
        self.eval_every = max(1, self.steps // 10)
        parameters = list(last_branch(router).parameters())
        own = {"lr": config.router_lr, "weight_decay": config.weight_decay, "task": None}
        self.groups: list[Group] = [{"params": parameters, **own}]

    def draw(self, step: int) -> FeatureBatch:
        """Half of the batch belongs to the task."""
        rng = np.random.default_rng([self.config.seed, 6, step])
        parts = [rows[rng.integers(len(rows), size=self.half)] for rows in (self.inputs.own, self.negatives)]
        belongs = torch.tensor([1, 0]).repeat_interleave(self.half)
        return FeatureBatch(torch.cat(parts).float(), belongs, torch.empty(0, 2, dtype=torch.long))

    def backward(self, batch: FeatureBatch, step: int, scale: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Binary cross entropy."""
        odds = branch_odds(self.router, batch.features)
        loss = F.binary_cross_entropy_with_logits(odds, batch.routes.to(odds))
        scale(loss).backward()
        return {LOSS: loss.detach()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean loss on held-out inputs of the added task and of the older ones, each with half of the weight."""
        self.router.eval()
        found = branch_odds(self.router, self.inputs.own_validation)
        lost = branch_odds(self.router, self.inputs.held_out)
        loss = float(F.softplus(-found).mean() + F.softplus(lost).mean()) / 2
        return {SCORE: -loss, "found": float((found > 0).float().mean()), "lost": float((lost > 0).float().mean())}


def last_branch(router: Router) -> Branch:
    """The branch of the task that was added last."""
    branch = router.branches[-1]
    assert isinstance(branch, Branch)
    return branch


def branch_odds(router: Router, features: Tensor) -> Tensor:
    """Log-odds of the last branch: ``(n, features)`` → ``(n,)``. The older tasks' shares get no gradient."""
    with torch.no_grad():
        shares = router.shares_before(features, len(router.branches) - 1)
    return last_branch(router)(features, shares)[:, 0]


def teach_branch(
    system: System, inputs: BranchInputs, config: TrainingConfig, accelerator: Accelerator, log: MetricsLog
) -> None:
    """Teach the last branch of the router its inputs, so that it takes at most ``LOST`` of the others."""
    router, branch = system.model.router.eval(), last_branch(system.model.router)
    branch.learn_looks(router.shares_before(inputs.own, len(router.branches) - 1))
    if branch.is_prototype:
        set_prototype(branch, inputs, system.model.ood)
    else:
        run_phase(BranchPhase(router, inputs, config), system, config, 0, accelerator, log)
    limit_losses(router, inputs)


@torch.no_grad()
def limit_losses(router: Router, inputs: BranchInputs) -> None:
    """Lower the last branch's bias until at most ``LOST`` of the held-out remembered inputs go to the added task."""
    router.eval()
    odds = branch_odds(router, inputs.held_out).sort(descending=True).values
    allowed = math.floor(LOST * len(odds))
    last = last_branch(router).mlp[-1]
    assert isinstance(last, torch.nn.Linear)
    if odds[allowed] >= 0:
        # Put the first input that must stay slightly below 0, so that rounding cannot bring it back.
        last.bias.sub_(odds[allowed] + 1e-3)


@torch.no_grad()
def set_prototype(branch: Branch, inputs: BranchInputs, ood: OutOfDistribution) -> None:
    """Set a branch that is a single row to a prototype of a few examples, without training.

    This is linear discriminant analysis with the within-task covariance that ``ood`` has measured. The row is the
    difference, in whitened space, between the mean of the task's examples and the mean of everything else. Its scale
    and bias follow from the means and the spread of the two groups along the row (Hastie et al. 2009, The Elements of
    Statistical Learning, section 4.3).
    """
    row = branch.mlp[-1]
    assert isinstance(row, torch.nn.Linear)
    groups = (inputs.own, inputs.negatives)
    own, other = (ood.whiten(features).mean(dim=0) for features in groups)
    weight = ood.projection @ (own - other)
    along = [F.layer_norm(features.float(), features.shape[1:]) @ weight for features in groups]
    distance = along[0].mean() - along[1].mean()
    scale = distance / torch.cat([places - places.mean() for places in along]).var().clamp_min(1e-6)
    row.weight.copy_(scale * weight[None])
    row.bias.fill_(-scale * (along[0].mean() + along[1].mean()) / 2)


@torch.no_grad()
def covering(calibration: Calibration, system: System, features: Tensor) -> Calibration:
    """The calibration with a confidence threshold that also keeps the configured share of further known inputs."""
    model = system.model
    share = (1 - calibration.coverage) / 2
    logits = model.router(features).logits / model.router.temperature
    confidence = calibration.probabilities(logits).amax(dim=1)
    lowest = float(torch.quantile(confidence, share, interpolation="lower"))
    return replace(calibration, threshold=min(calibration.threshold, lowest))
