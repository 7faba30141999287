"""The router: an MLP on pooled trunk features that says which adapter an input needs.

A task that is added to a trained model gets its own branch beside the MLP. The branch only decides between the added
task and all tasks before it, so the proportions among the earlier tasks do not change. A task that learns later what
else belongs to it gets a further branch in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from dynamo_mtl.model.batch import Batch

PREFIXES = (8, 16)
"""Lengths in tokens of the prefixes of an input that are pooled, for a short and for a long instruction."""
UNLIKELY = 1e-3
"""Added to every value of ``Branch.looks_like``: what some hundred inputs do not show may still be possible."""
POOLED = 3 + len(PREFIXES)
"""Number of vectors of the encoder's width that ``pool`` gives for each layer: the first token and the means."""


class RouterConfig(BaseModel):
    """The router and its temperature."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    hidden_sizes: list[Annotated[int, Field(ge=1)]] = [768, 512, 256]
    """Layers of the router between the features and one output for each adapter."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout after each of these layers."""
    temperature: float = Field(default=1.0, gt=0)
    """Softmax temperature at the start of training."""
    final_temperature: float | None = Field(default=None, gt=0)
    """Temperature at the end of a phase that trains the router; ``temperature`` if not given."""
    learn_temperature: bool = False
    """Learn the temperature around its schedule (``temperature_weight`` pulls it back)."""
    min_temperature: float = Field(default=0.05, gt=0)
    """Lowest temperature, scheduled or learned."""
    max_temperature: float = Field(default=10.0, gt=0)
    """Highest temperature."""
    branches: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    """Hidden size of each branch, in the order in which they were added to a trained model; 0 for a single row, a
    prototype. Written by ``dynamo add-task`` and ``dynamo adapt-router``."""
    branch_adapters: list[Annotated[int, Field(ge=0)] | None] = Field(default_factory=list)
    """For each branch the number of the adapter whose task it widens; null for that of a task that was added with it.
    Empty if all are of added tasks."""
    top_k: int = Field(default=1, ge=1)
    """Number of adapters that an input is sent to at inference; their weights are renormalised to sum to 1."""
    coverage: float = Field(default=0.99, gt=0, le=1)
    """Share of validation inputs that must be answered. Of the others, half may be rejected for low confidence, and
    half because they are unlike known inputs."""
    on_rejection: Literal["best_guess", "base", "error"] = "best_guess"
    """What is done with a rejected input: answer it by the likeliest task and mark it, answer it by the likeliest
    task's head without an adapter and mark it, or refuse it."""

    @model_validator(mode="after")
    def _one_for_each_branch(self) -> Self:
        if self.branch_adapters and len(self.branch_adapters) != len(self.branches):
            raise ValueError(
                f"branch_adapters: found {len(self.branch_adapters)} for {len(self.branches)} branches; give as many"
            )
        return self

    @property
    def widened(self) -> list[int | None]:
        """For each branch the adapter whose task it widens; None for that of an added task."""
        return self.branch_adapters or [None] * len(self.branches)

    @property
    def added(self) -> int:
        """Number of tasks that were added to a trained model: the last ones."""
        return self.widened.count(None)


@dataclass(frozen=True)
class Routing:
    """What the router says of every example."""

    logits: Tensor
    """``(examples, adapters)``, before the temperature, fp32."""
    weights: Tensor
    """``(examples, adapters)``, softmax of ``logits / temperature``, fp32."""


@dataclass(frozen=True)
class PoolingPlan:
    """Which source tokens the router features are made of."""

    segments: Tensor
    """``(tokens,)`` segment of each token: ``2 · example``, plus 1 in the question segment."""
    counts: Tensor
    """``(examples, 2, 1)`` number of tokens of each example outside and inside its question segment."""
    prefix: Tensor
    """``(examples, longest prefix)`` numbers of the tokens at the start of each example's first window."""
    prefix_masks: list[Tensor]
    """For each of ``PREFIXES`` a mask ``(examples, longest prefix)``, 1 for tokens of that prefix, else 0."""


def plan_pooling(batch: Batch, separator: int) -> PoolingPlan:
    """Plan which tokens each part of the features averages.

    The parts are all tokens, the question segment, and the prefixes of the first window, where an instruction stands.
    The question segment of a window ends with its first separator. For a text without a context it is the whole window.
    """
    separators = (batch.ids[: len(batch.windows)] == separator).long()
    before = separators.cumsum(0) - separators
    question = before == before.index_select(0, batch.starts.index_select(0, batch.windows))
    numbers = torch.arange(batch.example_count, device=batch.ids.device)
    first_windows = torch.searchsorted(batch.examples, numbers)  # windows lie example after example
    place = torch.arange(max(PREFIXES), device=batch.ids.device)
    prefix = (batch.starts.index_select(0, first_windows)[:, None] + place).clamp_max(len(batch.windows) - 1)
    # Places beyond the end of the window point at other tokens; the masks leave them out.
    real = place < torch.bincount(batch.windows, minlength=len(batch.starts)).index_select(0, first_windows)[:, None]
    prefix_masks = [(real & (place < length)).float() for length in PREFIXES]
    segments = 2 * batch.examples.index_select(0, batch.windows) + question
    counts = torch.bincount(segments, minlength=2 * batch.example_count).view(-1, 2, 1)
    return PoolingPlan(segments, counts, prefix, prefix_masks)


def pool(hidden: Tensor, plan: PoolingPlan) -> Tensor:
    """Compute router features: the first token, and the means of all tokens, the question segment and the prefixes.

    A mean over 450 words drowns a six-word instruction; the first token and the prefixes keep it. The question segment
    tells a question with a context from one long text, even if their words are the same.

    Args:
        hidden: ``(tokens and padding, hidden)`` states of the source tokens in one layer.
        plan: what the features are means of.

    Returns:
        ``(examples, POOLED · hidden)`` in fp32.
    """
    hidden = hidden[: len(plan.segments)].float()
    count = len(plan.prefix)
    prefix = hidden.index_select(0, plan.prefix.flatten()).view(*plan.prefix.shape, -1)
    sums = hidden.new_zeros(2 * count, hidden.shape[1]).index_add(0, plan.segments, hidden).view(count, 2, -1)
    return torch.cat(
        [
            prefix[:, 0],
            sums.sum(dim=1) / plan.counts.sum(dim=1),
            sums[:, 1] / plan.counts[:, 1],
            *((prefix * own[..., None]).sum(dim=1) / own.sum(dim=1, keepdim=True) for own in plan.prefix_masks),
        ],
        dim=1,
    )


def top_k_weights(weights: Tensor, top_k: int) -> Tensor:
    """Keep the ``top_k`` largest weights a row and renormalise: ``(examples, adapters)`` → same shape."""
    if top_k >= weights.shape[1]:
        return weights
    value, index = weights.topk(top_k, dim=1)
    return torch.zeros_like(weights).scatter(1, index, value / value.sum(dim=1, keepdim=True))


class Branch(nn.Module):
    """Log-odds that an input is one of those that the branch has learned, rather than of any kind known before.

    They are the output of the MLP plus ``log Σ_k p_k q_k``. Here p are the shares of the tasks before for this input,
    and q their mean shares for the inputs that the branch has learned. For example, if no input of an added translation
    task looks like a question, then an input that surely is a question is not sent to it, whatever its words are.

    Attributes:
        mlp: one hidden layer over normalised features; with a size of 0 only a linear layer with one output.
        looks_like: ``(tasks at that time,)`` q.
    """

    looks_like: Tensor

    def __init__(self, features: int, size: int, dropout: float, before: int) -> None:
        super().__init__()
        self.register_buffer("looks_like", torch.full((before,), 1 / before))
        # Dropout on the features too: there are many more of them than remembered inputs.
        start: list[nn.Module] = [nn.LayerNorm(features, elementwise_affine=False), nn.Dropout(dropout)]
        hidden = [nn.Linear(features, size), nn.GELU(), nn.Dropout(dropout)] if size else []
        self.mlp = nn.Sequential(*start, *hidden, nn.Linear(size or features, 1))
        self.is_prototype = not size

    @torch.no_grad()
    def learn_looks(self, shares: Tensor) -> None:
        """Set ``looks_like`` from the shares of the tasks before for the inputs to learn: ``(inputs, tasks)``."""
        mean = shares.mean(dim=0) + UNLIKELY
        self.looks_like.copy_(mean / mean.sum())

    def forward(self, features: Tensor, shares: Tensor) -> Tensor:
        """``(examples, features)`` and the shares of the tasks before ``(examples, tasks)`` → ``(examples, 1)``."""
        return self.mlp(features) + (shares @ self.looks_like).log()[:, None]


class Router(nn.Module):
    """MLP over normalised features; the softmax is taken in fp32 with a bounded temperature.

    Let z be the logits of the tasks so far, T the temperature, and d the log-odds of an added task's branch. The added
    task gets the logit ``T · (log Σ_k exp(z_k / T) + d)``. So its share is ``sigmoid(d)``, and the shares of the other
    tasks are multiplied by ``1 - sigmoid(d)``. A branch that widens a task adds this share to the one that it has.
    """

    def __init__(self, config: RouterConfig, features: int, adapters: int) -> None:
        super().__init__()
        self.config = config
        adapters -= config.added
        self.feature_size = features
        layers: list[nn.Module] = [nn.LayerNorm(features)]
        width = features
        for size in config.hidden_sizes:
            layers += [nn.Linear(width, size), nn.GELU(), nn.Dropout(config.dropout)]
            width = size
        self.mlp = nn.Sequential(*layers, nn.Linear(width, adapters))
        self.branches = nn.ModuleList()
        for size, widened in zip(config.branches, config.widened, strict=True):
            self.branches.append(Branch(features, size, config.dropout, adapters))
            adapters += widened is None
        start = torch.tensor(config.temperature).log()
        self.log_temperature = nn.Parameter(start.clone())
        self.register_buffer("scheduled_log_temperature", start.clone())

    def with_branch(self, size: int, widened: int | None) -> Router:
        """Return a router with a further, fresh branch: of an added task, or one that widens an adapter's task."""
        config = self.config.model_copy(
            update={"branches": [*self.config.branches, size], "branch_adapters": [*self.config.widened, widened]}
        )
        router = Router(config, self.feature_size, self.adapters + (widened is None))
        router.load_state_dict({**router.state_dict(), **self.state_dict()})
        return router.to(self.log_temperature.device)

    @property
    def adapters(self) -> int:
        """Number of adapters that it chooses from."""
        linear = self.mlp[-1]
        assert isinstance(linear, nn.Linear)
        return linear.out_features + self.config.added

    def without(self, adapter: int) -> Router:
        """Return a router without one of the outputs, and without the branches that widened its task.

        The tasks of the first training keep their proportions. An added task keeps its branch, but may now win or lose
        against other tasks.
        """
        tensors = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("branches.")}
        base = self.adapters - self.config.added
        if adapter < base:
            kept = [row for row in range(base) if row != adapter]
            last = f"mlp.{len(self.mlp) - 1}."
            tensors.update({f"{last}{part}": tensors[f"{last}{part}"][kept] for part in ("weight", "bias")})
        sizes: list[int] = []
        widened: list[int | None] = []
        own = base  # the adapter of the next added task
        for branch, size, other in zip(self.branches, self.config.branches, self.config.widened, strict=True):
            if (own if other is None else other) != adapter:
                kept_branch = branch.state_dict()
                looks = kept_branch["looks_like"]
                if adapter < len(looks):  # the removed task was before this branch
                    left = torch.cat([looks[:adapter], looks[adapter + 1 :]]) + UNLIKELY
                    kept_branch["looks_like"] = left / left.sum()
                tensors.update({f"branches.{len(sizes)}.{name}": tensor for name, tensor in kept_branch.items()})
                sizes.append(size)
                widened.append(None if other is None else other - (other > adapter))
            own += other is None
        adapters = widened if any(other is not None for other in widened) else []
        config = self.config.model_copy(update={"branches": sizes, "branch_adapters": adapters})
        router = Router(config, self.feature_size, self.adapters - 1)
        router.load_state_dict(tensors)
        return router

    @property
    def temperature(self) -> Tensor:
        """The temperature in use, clamped to its bounds."""
        low, high = self.config.min_temperature, self.config.max_temperature
        return self.log_temperature.exp().clamp(low, high)

    def schedule_temperature(self, progress: float) -> None:
        """Set the scheduled temperature at ``progress`` in [0, 1], geometric from the first to the final one."""
        config = self.config
        ratio = (config.final_temperature or config.temperature) / config.temperature
        target = torch.tensor(config.temperature * ratio**progress).log()
        with torch.no_grad():
            self.get_buffer("scheduled_log_temperature").copy_(target)
            if not config.learn_temperature:
                self.log_temperature.copy_(target)

    def forward(self, features: Tensor) -> Routing:
        """``(examples, features)`` → logits and weights ``(examples, adapters)``."""
        logits = self._logits(features, len(self.branches))
        return Routing(logits, torch.softmax(logits / self.temperature, dim=-1))

    def shares_before(self, features: Tensor, branch: int) -> Tensor:
        """Shares of the tasks before that of a branch: ``(examples, features)`` → ``(examples, tasks)``."""
        return torch.softmax(self._logits(features, branch) / self.temperature, dim=-1)

    def _logits(self, features: Tensor, branches: int) -> Tensor:
        logits, temperature = self.mlp(features), self.temperature
        for branch, widened in zip(self.branches[:branches], self.config.widened, strict=False):
            before = torch.logsumexp(logits / temperature, 1, keepdim=True)
            shares = torch.softmax(logits / temperature, 1)
            gained = before + branch(features, shares)
            if widened is None:
                logits = torch.cat([logits, temperature * gained], dim=1)
            else:
                is_own = torch.arange(logits.shape[1], device=logits.device) == widened
                # Not logaddexp: exported to ONNX, that overflows.
                both = torch.stack([logits / temperature, gained.expand_as(logits)])
                logits = torch.where(is_own, temperature * torch.logsumexp(both, 0), logits)
        return logits
