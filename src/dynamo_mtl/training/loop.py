"""The one training loop. A phase says what is trained, on what, and how well it is going; the loop does the rest."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dynamo_mtl.inference.system import System
from dynamo_mtl.training.objective import LOSS
from dynamo_mtl.training.optimizer import (
    Group,
    drop_idle_gradients,
    freeze_all_but,
    make_optimizer,
    warmup_and_decay,
)
from dynamo_mtl.training.settings import TrainingConfig
from dynamo_mtl.training.tracking import MetricsLog, Progress

logger = logging.getLogger(__name__)

SCORE = "score"
"""The validation value by which the best state is chosen; higher is better."""


class PhaseBatch(Protocol):
    """What a phase draws for one update."""

    @property
    def tasks(self) -> set[str]:
        """Tasks with a row in it."""
        ...

    @property
    def tokens(self) -> int:
        """Real tokens in it."""
        ...


class Phase(Protocol):
    """One stretch of training."""

    name: str
    steps: int
    eval_every: int
    groups: list[Group]
    """Parameter groups: exactly what this phase trains."""

    def draw(self, step: int) -> Any:
        """The batch of an update: a pure function of the seed and ``step``. May run in a worker process."""
        ...

    def backward(self, batch: Any, step: int, scale: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Leave the gradients of the batch in the parameters and return the terms of the loss."""
        ...

    def validate(self) -> dict[str, float]:
        """Validation values, among them ``score``."""
        ...


class _Draws(Dataset[Any]):
    """A phase's batches as a data set, so that worker processes can prepare them."""

    def __init__(self, phase: Phase) -> None:
        self.phase = phase

    def __len__(self) -> int:
        return self.phase.steps

    def __getitem__(self, step: int) -> Any:
        return self.phase.draw(step)


def run_phase(
    phase: Phase, system: System, config: TrainingConfig, workers: int, accelerator: Accelerator, log: MetricsLog
) -> None:
    """Train one phase and leave the model in its best validated state.

    The state before the first step takes part in the choice, so a phase cannot make a validated model worse.
    """
    parameters = [p for group in phase.groups for p in group["params"]]
    freeze_all_but(system.model, parameters)
    plain = make_optimizer(phase.groups, system.device)
    schedule = torch.optim.lr_scheduler.LambdaLR(plain, warmup_and_decay(phase.steps, config.warmup_ratio))
    optimizer = accelerator.prepare_optimizer(plain)
    scale = accelerator.scaler.scale if accelerator.scaler is not None else _unscaled
    router = system.model.router
    # The temperature follows its schedule without being trained; it is part of the validated state all the same.
    kept = [*parameters, router.log_temperature, router.get_buffer("scheduled_log_temperature")]
    best = _Best(kept, config.patience)
    best.update(_validate(phase, 0, log))
    progress = Progress(phase.name, phase.steps)
    recent: list[dict[str, Tensor]] = []
    for step, batch in enumerate(DataLoader(_Draws(phase), batch_size=None, num_workers=workers), start=1):
        system.model.train()
        optimizer.zero_grad(set_to_none=True)
        recent.append(phase.backward(batch, step - 1, scale))
        drop_idle_gradients(phase.groups, batch.tasks)
        accelerator.unscale_gradients(optimizer)
        norm = torch.nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], config.max_grad_norm)
        optimizer.step()
        schedule.step()
        progress.tokens += batch.tokens
        if step % config.log_every == 0 or step == phase.steps:
            terms = {name: float(torch.stack([r[name] for r in recent]).mean()) for name in recent[0]}
            rates = progress.line(step, terms[LOSS])
            log.write(phase.name, step, {**terms, "grad_norm": float(norm), **rates})
            recent = []
        if step % phase.eval_every == 0 or step == phase.steps:
            best.update(_validate(phase, step, log))
            if best.exhausted:
                logger.info("%s  stopped early after %d steps", phase.name, step)
                break
    best.restore()
    freeze_all_but(system.model, [])
    accelerator.free_memory()  # forget this phase's optimizer


def _unscaled(loss: Tensor) -> Tensor:
    return loss


def _validate(phase: Phase, step: int, log: MetricsLog) -> float:
    values = phase.validate()
    shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
    logger.info("%s  validation after %d steps: %s", phase.name, step, shown)
    log.write(phase.name, step, {f"validation_{name}": value for name, value in values.items()})
    return values[SCORE]


class _Best:
    """Remembers the trained parameters of the best validation."""

    def __init__(self, parameters: list[Tensor], patience: int | None) -> None:
        self.parameters, self.patience = parameters, patience
        self.score, self.worse, self.state = -math.inf, 0, [p.detach().clone() for p in parameters]

    def update(self, score: float) -> None:
        if score > self.score:
            self.score, self.worse = score, 0
            for kept, parameter in zip(self.state, self.parameters, strict=True):
                kept.copy_(parameter.detach())
        else:
            self.worse += 1

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self.worse >= self.patience

    def restore(self) -> None:
        with torch.no_grad():
            for kept, parameter in zip(self.state, self.parameters, strict=True):
                parameter.copy_(kept)
