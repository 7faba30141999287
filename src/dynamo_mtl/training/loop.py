"""The one training loop. A phase says what is trained, on what, and how well it is going; the loop does the rest."""

from __future__ import annotations

import logging
import math
import signal
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from dynamo_mtl.config.training_config import TrainingConfig
from dynamo_mtl.distributed import all_reduce_gradients, all_reduce_max, all_reduce_sum, gather
from dynamo_mtl.errors import DivergedError, MemoryShortage
from dynamo_mtl.out_of_memory import OutOfMemory, free_memory
from dynamo_mtl.system import System
from dynamo_mtl.training.best_state import BEST, BestState
from dynamo_mtl.training.loop_state import LoopState
from dynamo_mtl.training.metrics_log import NOTHING_AHEAD, Ahead, MetricsLog, Progress
from dynamo_mtl.training.objective import LOSS
from dynamo_mtl.training.optimizer import (
    drop_idle_gradients,
    freeze_all_but,
    make_optimizer,
    warmup_and_decay,
)
from dynamo_mtl.training.phases.phase import SCORE, Checkpointer, Phase, PhaseBatch

logger = logging.getLogger(__name__)


class _Draws(Dataset[Any]):
    """A phase's batches as a data set, so that worker processes can prepare them."""

    def __init__(self, phase: Phase) -> None:
        self.phase = phase

    def __len__(self) -> int:
        return self.phase.steps

    def __getitem__(self, step: int) -> Any:
        return self.phase.draw(step)


def run_phase(
    phase: Phase,
    system: System,
    config: TrainingConfig,
    workers: int,
    accelerator: Accelerator,
    log: MetricsLog,
    checkpointer: Checkpointer | None = None,
    start: LoopState | None = None,
    *,
    ahead: Ahead = NOTHING_AHEAD,
) -> float:
    """Train one phase and return the score of its final state, which is the best validated one or the last one.

    The state before the first step is a candidate for the best. So a phase that ends in its best state never lowers the
    validation score.

    Args:
        phase: what is trained, on what, and how it is judged.
        system: the model; only what the phase names is trained.
        config: schedule, clipping, logging.
        workers: processes that prepare batches.
        accelerator: device, mixed precision and trackers.
        log: where values go.
        checkpointer: saves the run as it goes on, if given.
        start: saved state to resume from; None starts at the first step.
        ahead: training that follows in the same phase, to estimate the remaining time.
    """
    loop = TrainingLoop(phase, system, config, accelerator)
    if start is None:
        loop.best.update(_validate(phase, 0, log), 0)
    else:
        loop.restore(start)
    progress = Progress(phase.name, phase.steps, loop.step, ahead)
    with checkpointer.stop.deferred() if checkpointer is not None else nullcontext():
        for batch in _batches(phase, loop.step, workers):
            loop.update(batch)
            progress.tokens += batch.tokens
            if loop.recent and (loop.step % config.log_every == 0 or loop.step == phase.steps):
                terms = loop.take_terms()
                rates = progress.line(loop.step, terms[LOSS])
                left_out = {"skipped": loop.skipped} if loop.skipped else {}
                log.write(phase.name, loop.step, {**terms, "grad_norm": loop.norm, **left_out, **rates})
            if loop.step % phase.eval_every == 0 or loop.step == phase.steps:
                loop.best.update(_validate(phase, loop.step, log), loop.step)
                if loop.best.exhausted:
                    logger.info("%s  stopped early after %d steps", phase.name, loop.step)
                    break
            if checkpointer is not None:
                checkpointer.stop.agree()
                checkpointer.after_step(loop.step, loop.numbers, loop.tensors)
    if phase.best_at_end:
        loop.best.restore()
        if loop.best.step == 0:
            logger.warning(
                "%s  nothing was learned: no validated state was better than the first one, which is kept; look at the "
                "data (dynamo data check), give more updates, another learning rate or more validation rows",
                phase.name,
            )
    freeze_all_but(system.model, [])
    accelerator.free_memory()  # forget this phase's optimizer
    return loop.best.score if phase.best_at_end else loop.best.last


class TrainingLoop:
    """The state of training that changes from step to step, apart from the model."""

    def __init__(self, phase: Phase, system: System, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.phase, self.system, self.config, self.accelerator = phase, system, config, accelerator
        self.parameters = [p for group in phase.groups for p in group["params"]]
        freeze_all_but(system.model, self.parameters)
        self.plain = make_optimizer(phase.groups, system.device)
        decay = warmup_and_decay(phase.steps, config.warmup_ratio, config.lr_schedule)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.plain, decay)
        self.optimizer = accelerator.prepare_optimizer(self.plain)
        self.scale = accelerator.scaler.scale if accelerator.scaler is not None else _unscaled
        router = system.model.router
        # Even a temperature that is not trained follows its schedule, so it belongs to the validated state.
        kept = [*self.parameters, router.log_temperature, router.get_buffer("scheduled_log_temperature")]
        self.best = BestState(kept, config.patience)
        self.step = 0
        self.norm = 0.0
        self.recent: list[dict[str, Tensor]] = []
        self.skipped = 0
        self.budget: int | None = None
        """Maximum tokens of a micro-batch; set once memory has run out."""

    def update(self, batch: PhaseBatch) -> None:
        """One optimizer step, unless the loss or the gradient is not finite."""
        self.system.model.train()
        terms = self._backward(batch)
        all_reduce_gradients(self.parameters)
        drop_idle_gradients(self.phase.groups, set(self.phase.members(self.step)))
        self.accelerator.unscale_gradients(self.optimizer)
        present = [p for p in self.parameters if p.grad is not None]
        self.norm = float(torch.nn.utils.clip_grad_norm_(present, self.config.max_grad_norm))
        # Under fp16 a gradient may overflow. The scaler then skips the step itself and lowers its scale.
        overflow = self.accelerator.scaler is not None and bool(terms[LOSS].isfinite())
        if math.isfinite(self.norm + float(terms[LOSS])) or overflow:
            self.recent.append(terms)
            self.optimizer.step()
        else:
            self._refuse(float(terms[LOSS]))
        self.schedule.step()
        self.step += 1

    def _backward(self, batch: PhaseBatch) -> dict[str, Tensor]:
        """Compute this process's gradients, and return the loss terms of the whole batch.

        If memory runs out, try again with smaller micro-batches. This changes only the dropout masks of the update.
        """
        while True:
            batch = batch if self.budget is None else batch.within(self.budget)
            self.optimizer.zero_grad(set_to_none=True)
            try:
                own = self.phase.backward(batch, self.step, self.scale)
                names = list(own)
                return dict(
                    zip(names, all_reduce_sum(torch.stack([own[name] for name in names])).unbind(), strict=True)
                )
            except OutOfMemory as shortage:
                limit = batch.largest // 2 if shortage.own else math.inf
            # All processes take the lowest limit. Memory is freed only here: the handler above still holds tensors.
            self.budget = int(-all_reduce_max(-limit))
            free_memory()
            if self.budget == 0:
                raise MemoryShortage(
                    f"{self.phase.name}, step {self.step + 1}: not even one example at a time fits into memory; lower "
                    "data.max_source_length, data.max_windows or the lengths of the targets"
                )
            logger.warning(
                "%s  out of memory: micro-batches of at most %d tokens from here on, the batch stays the same",
                self.phase.name,
                self.budget,
            )

    def _refuse(self, loss: float) -> None:
        """Stop before an update that is not finite, or skip and count it."""
        members = "; ".join(f"{task} rows {rows}" for task, rows in self.phase.members(self.step).items())
        found = f"{self.phase.name}, step {self.step + 1}: loss {loss}, gradient norm {self.norm}, on {members}"
        if self.config.on_nonfinite == "stop":
            raise DivergedError(
                f"{found}; lower the learning rate, look at these rows, or set training.on_nonfinite to skip"
            )
        self.skipped += 1
        logger.warning("%s; left out, %d so far", found, self.skipped)

    def take_terms(self) -> dict[str, float]:
        """Means of the terms of all steps since the last call."""
        terms = {name: float(torch.stack([r[name] for r in self.recent]).mean()) for name in self.recent[0]}
        self.recent = []
        return terms

    def numbers(self) -> dict[str, Any]:
        """What a state keeps as JSON."""
        scaler = self.accelerator.scaler
        return {
            "phase": self.phase.state(),
            "rates": [group["lr"] for group in self.plain.param_groups],
            "best": {name: getattr(self.best, name) for name in BEST},
            "scaler": scaler.state_dict() if scaler is not None else None,
            "recent": len(self.recent),
            "skipped": self.skipped,
            "budget": self.budget,
        }

    def tensors(self) -> dict[str, Tensor]:
        """What a state keeps as tensors."""
        kept: dict[str, Tensor] = {f"best.{i}": tensor for i, tensor in enumerate(self.best.state)}
        for i, parameter in enumerate(self.parameters):
            kept.update({f"moments.{i}.{name}": value for name, value in self.plain.state[parameter].items()})
        for i, terms in enumerate(self.recent):
            kept.update({f"recent.{i}.{name}": value for name, value in terms.items()})
        return kept

    def restore(self, state: LoopState) -> None:
        """Go on from a state that ``numbers`` and ``tensors`` made."""
        self.step = state.step
        numbers, groups = state.numbers, _by_prefix(state.tensors)
        for group, rate in zip(self.plain.param_groups, numbers["rates"], strict=True):
            group["lr"] = rate
        self.schedule.last_epoch, self.schedule._step_count = state.step, state.step + 1
        for i, parameter in enumerate(self.parameters):
            moments = groups.get(f"moments.{i}", {})
            # The fused kernel keeps its step count on the parameter's device; the other moments have its shape.
            self.plain.state[parameter] = {n: t.to(parameter.device) for n, t in moments.items()}
        for i, tensor in enumerate(self.best.state):
            tensor.copy_(state.tensors[f"best.{i}"])
        for name in BEST:
            setattr(self.best, name, numbers["best"][name])
        self.skipped, self.budget = numbers["skipped"], numbers["budget"]
        device = self.system.device
        self.recent = [
            {name: t.to(device) for name, t in groups[f"recent.{i}"].items()} for i in range(numbers["recent"])
        ]
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(numbers["scaler"])


def _by_prefix(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """``moments.3.exp_avg`` → ``{"moments.3": {"exp_avg": …}}``."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, _, last = name.rpartition(".")
        groups.setdefault(prefix, {})[last] = tensor
    return groups


def _batches(phase: Phase, first: int, workers: int) -> DataLoader[Any]:
    # The loader gets its own generator; otherwise it would draw a number from the one that dropout uses.
    draws = Subset(_Draws(phase), range(first, phase.steps))
    generator = torch.Generator()
    return DataLoader(
        draws, batch_size=None, num_workers=workers, generator=generator, worker_init_fn=_leave_signals_to_the_parent
    )


def _leave_signals_to_the_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _unscaled(loss: Tensor) -> Tensor:
    return loss


def _validate(phase: Phase, step: int, log: MetricsLog) -> dict[str, float]:
    values = gather(phase.validate())[0]  # the first process's values: others may round differently, but all must agree
    shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if name != SCORE)
    logger.info("%s  validation after %d steps: %s", phase.name, step, shown)
    log.write(phase.name, step, {f"validation_{name}": value for name, value in values.items()})
    return values
