"""One update's forward and backward: any tasks in one batch, split into micro-batches of any size.

Task losses are sums over the counts of the whole batch. Routing is computed for the whole batch at once: each
micro-batch runs its top layers on a detached copy of its weights, whose gradient is handed back to the router in the
end. So neither depends on how the batch was split.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynamo_mtl.data.batch import split_by_tokens
from dynamo_mtl.inference.system import System
from dynamo_mtl.model.packing import to_device
from dynamo_mtl.model.router import Router, Routing
from dynamo_mtl.tasks.encoding import EncodedExample, PackedExamples, collate
from dynamo_mtl.training.objective import LOSS, TASK, Objective, RoutingTerms


@dataclass(frozen=True)
class StepBatch:
    """The examples of one update, packed into micro-batches."""

    micro: list[PackedExamples]
    order: list[list[int]]
    """Numbers of the examples in each micro-batch."""
    twins: Tensor
    """``(pairs, 2)`` examples that are one input under two wordings."""
    tasks: set[str]
    tokens: int

    @property
    def size(self) -> int:
        """Examples."""
        return sum(map(len, self.order))


def make_step_batch(
    examples: Sequence[EncodedExample], twins: Sequence[tuple[int, int]], budget: int, first_position: int
) -> StepBatch:
    """Pack the examples of one update into micro-batches of at most ``budget`` tokens."""
    order = split_by_tokens([e.tokens for e in examples], budget)
    if logger.isEnabledFor(logging.DEBUG):
        makeup = Counter(e.task or "router only" for e in examples)
        logger.debug("batch: %s in %d micro-batches, %d twins", dict(makeup), len(order), len(twins))
    return StepBatch(
        micro=[collate([examples[i] for i in group], first_position) for group in order],
        order=order,
        twins=torch.tensor(twins, dtype=torch.long).reshape(-1, 2),
        tasks={e.task for e in examples if e.task is not None},
        tokens=sum(e.tokens for e in examples),
    )


logger = logging.getLogger(__name__)

Scale = Callable[[Tensor], Tensor]
"""What a loss is multiplied by before its gradient is taken: fp16 needs it, the other types do not."""


def task_backward(system: System, batch: StepBatch, adapter: int, scale: Scale) -> dict[str, Tensor]:
    """Backward of the task losses with all rows sent to one adapter. Returns the loss by term."""
    totals = _totals(batch)
    value = torch.zeros((), device=system.device)
    for packed in batch.micro:
        moved = to_device(packed, system.device)
        rows = moved.batch.example_count
        weights = torch.zeros(rows, len(system.tasks), device=system.device)
        weights[:, adapter] = 1.0
        output = system.model(moved.batch, weights, active=[adapter], top_k=1)
        loss = _task_loss(system, moved, output.hidden, totals)
        scale(loss).backward()
        value += loss.detach()
    return {LOSS: value, TASK: value}


def mixture_backward(
    system: System, batch: StepBatch, objective: Objective, own_share: float, scale: Scale
) -> dict[str, Tensor]:
    """Backward of the whole objective through the mixture.

    Args:
        system: what is trained.
        batch: examples of any tasks.
        objective: weights of the terms.
        own_share: share of the router's own choice in the mixing weights; the rest goes to the known task.
        scale: see ``Scale``.

    Returns:
        The total, and every term's value, unweighted.
    """
    totals = _totals(batch)
    moved = [to_device(packed, system.device) for packed in batch.micro]
    trunks = [system.model.trunk(packed.batch) for packed in moved]
    features = torch.cat([trunk.features for trunk in trunks])
    routes = torch.cat([packed.routes for packed in moved])
    routing: Routing = system.model.router(features)
    known = torch.nn.functional.one_hot(routes, len(system.tasks)).to(routing.weights)
    mixed = torch.lerp(known, routing.weights, own_share)
    if logger.isEnabledFor(logging.DEBUG):
        mean = [round(w, 3) for w in routing.weights.mean(dim=0).tolist()]
        logger.debug("routing weights: mean %s, own share %.2f", dict(zip(system.tasks, mean, strict=True)), own_share)
    task_value = torch.zeros((), device=system.device)
    gradients: list[Tensor] = []
    first = 0
    for packed, trunk in zip(moved, trunks, strict=True):
        weights = mixed[first : first + packed.batch.example_count].detach().requires_grad_()
        first += packed.batch.example_count
        if packed.views:
            output = system.model(packed.batch, weights, trunk=trunk)
            loss = objective.task_weight * _task_loss(system, packed, output.hidden, totals)
            scale(loss).backward()
            task_value += loss.detach()
        gradients.append(torch.zeros_like(weights) if weights.grad is None else weights.grad)
    twins = _packed_order(batch)[batch.twins].to(system.device)
    terms = objective.routing_terms(read_routing(system.model.router, features, routing, routes, twins))
    total = objective.total(terms, system.device)
    handed_back = (mixed * torch.cat(gradients)).sum()  # its gradient is what the micro-batches left at their weights
    (handed_back + scale(total)).backward()
    return {
        LOSS: total.detach() + task_value,
        TASK: task_value / (objective.task_weight or 1.0),
        **{n: v.detach() for n, v in terms.items()},
    }


def read_routing(router: Router, features: Tensor, routing: Routing, routes: Tensor, twins: Tensor) -> RoutingTerms:
    """What the terms of the objective read of one batch, with a second view of it under another dropout mask."""
    second = router(features).weights
    scheduled = router.get_buffer("scheduled_log_temperature")
    return RoutingTerms(routing.logits, routing.weights, routes, second, twins, router.temperature, scheduled)


def _packed_order(batch: StepBatch) -> Tensor:
    """Example number → row in the concatenation of all micro-batches."""
    rows = torch.empty(batch.size, dtype=torch.long)
    rows[torch.tensor([i for group in batch.order for i in group])] = torch.arange(batch.size)
    return rows


def _totals(batch: StepBatch) -> dict[str, tuple[int, int]]:
    """Examples and labels of each task in the whole batch."""
    totals: dict[str, tuple[int, int]] = {}
    for packed in batch.micro:
        for view in packed.views:
            examples, labels = totals.get(view.task, (0, 0))
            totals[view.task] = (examples + len(view.examples), labels + len(view.label_rows))
    return totals


def _task_loss(system: System, packed: PackedExamples, hidden: Tensor, totals: dict[str, tuple[int, int]]) -> Tensor:
    """This micro-batch's part of ``Σ_t weight_t · (n_t / n) · mean loss_t`` over the whole batch."""
    everything = sum(examples for examples, _ in totals.values())
    parts: list[Tensor] = []
    for view in packed.views:
        examples, labels = totals[view.task]
        losses = system.tasks[view.task].losses(system.model.head(view.task), hidden, view)
        weight = system.config.tasks[view.task].loss_weight
        parts.append(losses.sum() * (weight * examples / everything / labels))
    return torch.stack(parts).sum()


@torch.inference_mode()
def example_losses(
    system: System, examples: Sequence[EncodedExample], budget: int, own_routing: bool = False
) -> list[float]:
    """Mean loss of every example, with the known adapter or, with ``own_routing``, the router's own choice."""
    system.model.eval()
    result = [0.0] * len(examples)
    for group in split_by_tokens([e.tokens for e in examples], budget):
        packed = to_device(collate([examples[i] for i in group], system.first_position), system.device)
        known = torch.nn.functional.one_hot(packed.routes, len(system.tasks)).float()
        output = system.model(packed.batch) if own_routing else system.model(packed.batch, known, top_k=1)
        for view in packed.views:
            losses = system.tasks[view.task].losses(system.model.head(view.task), output.hidden, view)
            counts = torch.bincount(view.label_rows, minlength=len(view.examples))
            sums = torch.zeros(len(view.examples), device=losses.device).index_add(0, view.label_rows, losses)
            for member, value in zip(view.examples.tolist(), (sums / counts).tolist(), strict=True):
                result[group[member]] = value
    return result
