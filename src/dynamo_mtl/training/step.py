"""Runs the forward and backward pass of one update. A batch may mix tasks, and may be split in any way.

The result does not depend on how the batch is split into micro-batches and over processes. Task losses are sums,
divided by the counts of the whole batch. Routing is computed for the whole batch at once, in every process. Each
micro-batch runs its top layers on a detached copy of its routing weights. The gradient of that copy is passed back to
the router at the end. The values and gradients of a process are its part of the sum over all processes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from dynamo_mtl.distributed import all_reduce_sum, join_shares, world
from dynamo_mtl.model.batch import to_device
from dynamo_mtl.model.router import Router, Routing
from dynamo_mtl.out_of_memory import agreed, run_in_groups, split_by_tokens
from dynamo_mtl.system import System
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource, PackedExamples
from dynamo_mtl.tasks.generation_task import GenerationTask
from dynamo_mtl.tasks.task import Answer
from dynamo_mtl.training.objective import LOSS, TASK, Objective, RoutingTerms

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepBatch:
    """The examples of one update: this process's share of them, packed into micro-batches."""

    examples: Sequence[EncodedExample]
    numbers: Tensor
    """``(own examples,)`` index of each own example in the whole batch."""
    routes: Tensor
    """``(examples,)`` the adapter that each example of the whole batch belongs to."""
    twins: Tensor
    """``(pairs, 2)`` pairs of examples of the whole batch that are the same input under two instructions."""
    collate: Callable[[Sequence[EncodedExample]], PackedExamples]
    """How a micro-batch is packed."""
    budget: int
    """Most tokens in a micro-batch."""

    @cached_property
    def order(self) -> list[list[int]]:
        """Own examples in each micro-batch."""
        return split_by_tokens([e.tokens for e in self.examples], self.budget)

    @cached_property
    def micro(self) -> list[PackedExamples]:
        """The micro-batches."""
        return [self.collate([self.examples[i] for i in group]) for group in self.order]

    @property
    def tokens(self) -> int:
        """Real tokens in this process's share."""
        return sum(e.tokens for e in self.examples)

    @property
    def largest(self) -> int:
        """Tokens in the largest micro-batch that holds several examples; 0 if none does."""
        return max((sum(self.examples[i].tokens for i in group) for group in self.order if len(group) > 1), default=0)

    def within(self, budget: int) -> StepBatch:
        """The same examples in micro-batches of at most ``budget`` tokens."""
        return self if budget >= self.budget else replace(self, budget=budget)


def make_step_batch(
    examples: Sequence[EncodedExample],
    twins: Sequence[tuple[int, int]],
    budget: int,
    collate: Callable[[Sequence[EncodedExample]], PackedExamples],
    numbers: Sequence[int] | None = None,
    routes: Sequence[int] | None = None,
) -> StepBatch:
    """Pack the examples of one update into micro-batches of at most ``budget`` tokens.

    Args:
        examples: this process's share.
        twins: pairs of indices in the whole batch: the same input under two instructions.
        budget: most tokens in a micro-batch.
        collate: packs a micro-batch.
        numbers: index of each example in the whole batch; None if the examples are the whole batch.
        routes: the adapter of every example of the whole batch; needed with ``numbers``.
    """
    batch = StepBatch(
        examples=examples,
        numbers=torch.tensor(list(range(len(examples)) if numbers is None else numbers), dtype=torch.long),
        routes=torch.tensor([e.route for e in examples] if routes is None else list(routes), dtype=torch.long),
        twins=torch.tensor(twins, dtype=torch.long).reshape(-1, 2),
        collate=collate,
        budget=budget,
    )
    if logger.isEnabledFor(logging.DEBUG):
        makeup = Counter(e.task or "router only" for e in examples)
        logger.debug("batch: %s in %d micro-batches, %d twins", dict(makeup), len(batch.micro), len(twins))
    return batch


Scale = Callable[[Tensor], Tensor]
"""Scales a loss before its backward pass. Only fp16 needs this."""


def task_backward(system: System, batch: StepBatch, adapter: int, scale: Scale) -> dict[str, Tensor]:
    """Run the backward pass of the task losses, with all rows sent to one adapter. Returns the loss by term."""
    totals = _totals(system, batch)
    value = torch.zeros((), device=system.device)
    with agreed():
        for packed in batch.micro:
            moved = to_device(packed, system.device)
            weights = system.model.oracle_weights(
                torch.full((moved.batch.example_count,), adapter, device=system.device)
            )
            output = system.model(moved.batch, weights, active=[adapter], top_k=1)
            loss = _task_loss(system, moved, output.hidden, totals)
            scale(loss).backward()
            value += loss.detach()
    return {LOSS: value, TASK: value}


def mixture_backward(
    system: System, batch: StepBatch, objective: Objective, own_share: float, scale: Scale
) -> dict[str, Tensor]:
    """Run the backward pass of the whole objective through the mixture.

    Args:
        system: what is trained.
        batch: examples of any tasks.
        objective: weights of the terms.
        own_share: share of the router's own choice in the mixing weights; the rest goes to the known task.
        scale: see ``Scale``.

    Returns:
        The total, and every term's value, unweighted.
    """
    totals = _totals(system, batch)
    router, device, processes = system.model.router, system.device, world().size
    features = torch.zeros(len(batch.routes), system.model.router.feature_size, device=device)
    with agreed():
        moved = [to_device(packed, device) for packed in batch.micro]
        trunks = [system.model.trunk(packed.batch) for packed in moved]
        places = [batch.numbers[group].to(device) for group in batch.order]
        for place, trunk in zip(places, trunks, strict=True):
            features[place] = trunk.features
    features = all_reduce_sum(features)  # each row is zero everywhere but in the process that has the example
    with agreed():
        routes = batch.routes.to(device)
        routing: Routing = router(features)
        mixed = torch.lerp(system.model.oracle_weights(routes), routing.weights, own_share)
        if logger.isEnabledFor(logging.DEBUG):
            mean = [round(w, 3) for w in routing.weights.mean(dim=0).tolist()]
            names = dict(zip(system.tasks, mean, strict=True))
            logger.debug("routing weights: mean %s, own share %.2f", names, own_share)
        task_value = torch.zeros((), device=device)
        gradient = torch.zeros_like(mixed)
        for packed, trunk, place in zip(moved, trunks, places, strict=True):
            if packed.views:
                weights = mixed[place].detach().requires_grad_()
                output = system.model(packed.batch, weights, trunk=trunk)
                loss = objective.task_weight * _task_loss(system, packed, output.hidden, totals)
                scale(loss).backward()
                task_value += loss.detach()
                if weights.grad is not None:
                    gradient[place] = weights.grad
        read = read_routing(router, features, routing, routes, batch.twins.to(device))
        # Every process computes the whole routing, so each contributes an equal part of its terms.
        terms = {name: value / processes for name, value in objective.routing_terms(read).items()}
        total = objective.total(terms, device)
        handed_back = (mixed * gradient).sum()  # its gradient is that of the micro-batches' weights
        (handed_back + scale(total)).backward()
    return {
        LOSS: total.detach() + task_value,
        TASK: task_value / (objective.task_weight or 1.0),
        **{n: v.detach() for n, v in terms.items()},
    }


def read_routing(router: Router, features: Tensor, routing: Routing, routes: Tensor, twins: Tensor) -> RoutingTerms:
    """Collect the inputs of the routing terms for one batch, with a second routing under another dropout mask."""
    second = router(features).weights
    scheduled = router.get_buffer("scheduled_log_temperature")
    return RoutingTerms(routing.logits, routing.weights, routes, second, twins, router.temperature, scheduled)


def _totals(system: System, batch: StepBatch) -> dict[str, tuple[int, int]]:
    """Examples and labels of each task in the whole batch."""
    counts = torch.zeros(len(system.tasks), 2, dtype=torch.long)
    for packed in batch.micro:
        for view in packed.views:
            counts[system.route_of(view.task)] += torch.tensor([len(view.examples), len(view.label_rows)])
    pairs = all_reduce_sum(counts).tolist()
    return {name: (pairs[i][0], pairs[i][1]) for i, name in enumerate(system.model.task_names)}


def _task_loss(system: System, packed: PackedExamples, hidden: Tensor, totals: dict[str, tuple[int, int]]) -> Tensor:
    """This micro-batch's part of ``Σ_t weight_t · (n_t / n) · mean loss_t`` over the whole batch."""
    everything = sum(examples for examples, _ in totals.values())
    parts: list[Tensor] = []
    for view in packed.views:
        examples, labels = totals[view.task]
        losses = system.tasks[view.task].losses(system.model.head(view.task), hidden, view)
        weight = system.config.tasks[view.task].loss_weight
        parts.append(losses.sum() * (weight * examples / everything / max(1, labels)))  # a text may have no tokens
    return torch.stack(parts).sum()


@dataclass(frozen=True)
class Judged:
    """How a model does on one labelled example."""

    loss: float
    """Mean over its labels."""
    answer: Answer | None = None
    """The model's answer, if it was asked for and the task reads its answers off the hidden states."""


def example_losses(
    system: System, examples: Sequence[EncodedExample], budget: int, own_routing: bool = False
) -> list[float]:
    """Mean loss of every example, with the known adapter or, with ``own_routing``, the router's own choice."""
    system.model.eval()
    judged = _share_judged(system, world().share(examples), None, budget, own_routing)
    return [one.loss for one in join_shares(judged)]


def judge_examples(
    system: System, examples: Sequence[EncodedExample], sources: Sequence[EncodedSource], budget: int
) -> list[Judged]:
    """Loss and answer of every example with its known adapter, in one pass. ``sources`` are the examples' sources."""
    system.model.eval()
    share = world().share
    return join_shares(_share_judged(system, share(examples), share(sources), budget, False))


@torch.inference_mode()
def _share_judged(
    system: System,
    examples: Sequence[EncodedExample],
    sources: Sequence[EncodedSource] | None,
    budget: int,
    own_routing: bool,
) -> list[Judged]:
    result = [Judged(0.0)] * len(examples)

    def run(group: Sequence[int]) -> None:
        packed = to_device(system.collate([examples[i] for i in group]), system.device)
        known = None if own_routing else system.model.oracle_weights(packed.routes)
        output = system.model(packed.batch, known, top_k=1)
        for view in packed.views:
            task, head = system.tasks[view.task], system.model.head(view.task)
            losses = task.losses(head, output.hidden, view)
            counts = torch.bincount(view.label_rows, minlength=len(view.examples))
            sums = torch.zeros(len(view.examples), device=losses.device).index_add(0, view.label_rows, losses)
            means = (sums / counts.clamp_min(1)).tolist()
            members = [group[member] for member in view.examples.tolist()]
            answers: Sequence[Answer | None] = [None] * len(members)
            if sources is not None and not isinstance(task, GenerationTask):
                answers = task.answers(head, output.hidden, view, [sources[i] for i in members])
            for i, mean, answer in zip(members, means, answers, strict=True):
                result[i] = Judged(mean, answer)

    run_in_groups([e.tokens for e in examples], budget, run)
    return result
