"""Measures how far an input is from all known ones, to tell an input of no task from a hard one of a known task.

A router can be confident far from everything it has seen, so its confidence says little about inputs of no task. But
their trunk features lie far from known ones. The measure is the distance to the k-th nearest known feature (Sun et al.
2022, arXiv 2204.06507), on principal components that are whitened by the covariance within tasks (as in Lee et al.
2018, arXiv 1807.03888). So directions in which the inputs of one task differ little count most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

COMPONENTS = 256
REFERENCES = 10000
NEIGHBOUR = 2
"""The k of the k-th nearest known feature. The first is sometimes a near-copy of the input."""
PLAIN_SHARE = 0.75
"""Weight of plain inputs in the covariance; instructed ones have the rest. These also vary with their instruction: with
too few of them, an unseen instruction looks like an unseen task; with too many, unseen tasks look known."""
RIDGE = 1e-2
"""Share of the mean variance that is added to the variance of every direction."""
SMALLEST = 1e-6
"""Added to every variance, so that training inputs that are all alike can still be distinguished from others."""
CALIBRATION = 1000
"""Number of known distances that are kept for comparison, as evenly spaced quantiles."""


class OutOfDistribution(nn.Module):
    """Distance of router features from known ones. It has only buffers, which are fitted, not trained.

    Attributes:
        center: ``(features,)`` mean of normalised features.
        projection: ``(features, components)`` principal directions, scaled to unit variance within tasks.
        references: ``(references, components)`` known features.
        distances: ``(CALIBRATION,)`` quantiles of the distances of validation inputs, ascending.
    """

    center: Tensor
    projection: Tensor
    references: Tensor
    distances: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("projection", torch.zeros(features, 0))
        self.register_buffer("references", torch.zeros(0, 0))
        self.register_buffer("distances", torch.zeros(0))

    @property
    def is_fitted(self) -> bool:
        """Whether there is anything to compare with."""
        return len(self.distances) > 0

    @torch.no_grad()
    def fit(self, features: Tensor, groups: Tensor, is_bare: Tensor, seed: int) -> None:
        """Learn the known features and the scale of every direction.

        Args:
            features: ``(n, features)`` of training inputs.
            groups: ``(n,)`` group of each input: one for each kind of input of each task.
            is_bare: ``(n,)`` whether each is a text without an instruction.
            seed: seed of the random projection and sample.
        """
        # Seeding reaches the generator of a GPU too.
        with torch.random.fork_rng(devices=[features.device] if features.is_cuda else []):
            torch.manual_seed(seed)
            normal = nn.functional.layer_norm(features.float(), features.shape[1:])
            center = normal.mean(dim=0)
            count = min(COMPONENTS, *features.shape)
            _, _, directions = torch.svd_lowrank(normal - center, q=count, niter=3)
            states = (normal - center) @ directions
            chosen = torch.randperm(len(states))[:REFERENCES].to(states.device)
        plain, other = _covariance(states, groups, is_bare), _covariance(states, groups, ~is_bare)
        within = PLAIN_SHARE * plain + (1 - PLAIN_SHARE) * other if plain.any() and other.any() else plain + other
        ridge = RIDGE * within.diagonal().mean() + SMALLEST
        within += ridge * torch.eye(count, device=within.device)
        # For within⁻¹ = L Lᵀ, rows times L have unit variance within tasks.
        scale = torch.linalg.cholesky(torch.linalg.inv(within))
        self.center, self.projection = center, directions @ scale
        self.references = states[chosen] @ scale

    @torch.no_grad()
    def calibrate(self, features: Tensor) -> None:
        """Store the distances of held-out inputs of known tasks, ``(n, features)``. Does nothing before ``fit``."""
        if not len(self.references):
            return
        levels = torch.linspace(0, 1, CALIBRATION, device=features.device)
        self.distances = torch.quantile(self(features), levels)

    def whiten(self, features: Tensor) -> Tensor:
        """``(n, features)`` → ``(n, components)``, of unit variance within known tasks."""
        return (nn.functional.layer_norm(features.float(), features.shape[1:]) - self.center) @ self.projection

    @torch.no_grad()
    def extend(self, features: Tensor, held_out: Tensor) -> None:
        """Add the inputs of another task to the known ones.

        Directions and scales stay, so the distances of inputs that were known before can only become smaller.

        Args:
            features: ``(n, features)`` of its training inputs.
            held_out: ``(m, features)`` of its validation inputs, to calibrate with.
        """
        before = len(self.references)
        self.references = torch.cat([self.references, self.whiten(features)])
        levels = torch.linspace(0, 1, CALIBRATION, device=features.device)
        # The weight of the added task is its share of all known inputs.
        count = max(1, round(len(self.distances) * len(features) / max(1, before)))
        added = torch.quantile(self(held_out), torch.linspace(0, 1, count, device=features.device))
        self.distances = torch.quantile(torch.cat([self.distances, added]), levels)

    def forward(self, features: Tensor) -> Tensor:
        """``(n, features)`` → ``(n,)`` distances from what is known."""
        states = self.whiten(features)
        nearest = torch.cdist(states, self.references).topk(min(NEIGHBOUR, len(self.references)), largest=False)
        return nearest.values[:, -1].contiguous()

    def familiarity(self, features: Tensor) -> Tensor:
        """``(n, features)`` → ``(n,)`` share of known inputs that lie at least as far away, in (0, 1].

        The familiarity of an input of a known task is below p with probability at most p (a conformal p-value, Vovk et
        al. 2005). That of an input of no task is near 0. Before ``fit`` and ``calibrate`` it is 1.
        """
        if not self.is_fitted:
            return features.new_ones(len(features))
        nearer = torch.searchsorted(self.distances, self(features))
        return (len(self.distances) - nearer + 1).clamp(max=len(self.distances)) / len(self.distances)

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Load fitted buffers, in their own sizes. Raises ``ValueError`` if they do not fit together."""
        names = ("center", "projection", "references", "distances")
        if set(tensors) != set(names):
            raise ValueError(f"should hold {', '.join(names)}, found {', '.join(sorted(tensors))}")
        shapes = [tuple(tensors[name].shape) for name in names]
        features, components = len(self.center), tensors["projection"].shape[-1]
        known, kept = len(tensors["references"]), len(tensors["distances"])
        if shapes != [(features,), (features, components), (known, components), (kept,)] or not known * kept:
            raise ValueError(f"sizes {shapes} do not fit {features} features")
        for name in names:
            setattr(self, name, tensors[name].to(self.center.device))


def _covariance(states: Tensor, groups: Tensor, chosen: Tensor) -> Tensor:
    """Covariance within groups of the chosen rows: ``(components, components)``; zeros if none is chosen."""
    total = states.new_zeros(states.shape[1], states.shape[1])
    for group in groups[chosen].unique():
        own = states[chosen & (groups == group)]
        own = own - own.mean(dim=0)
        total += own.T @ own
    return total / max(1, int(chosen.sum()))


@dataclass(frozen=True)
class RouterMemory:
    """Router features of training texts: each text plain, with an instruction, and with one of another task."""

    features: Tensor
    """``(n, router.feature_size)``."""
    routes: Tensor
    """``(n,)`` adapter that each input should go to."""
    origins: Tensor
    """``(n,)`` adapter of the task that its text comes from."""
    is_bare: Tensor
    """``(n,)`` whether it has no instruction."""

    def __len__(self) -> int:
        return len(self.routes)

    def select(self, rows: Tensor) -> RouterMemory:
        """Select inputs by number or by mask."""
        return RouterMemory(*(getattr(self, f.name)[rows] for f in fields(self)))

    def to(self, device: torch.device) -> RouterMemory:
        """The same on another device."""
        return RouterMemory(*(getattr(self, f.name).to(device) for f in fields(self)))

    def joined(self, other: RouterMemory) -> RouterMemory:
        """Both, one after the other."""
        return RouterMemory(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def sample(self, count: int, seed: int) -> RouterMemory:
        """A random choice of at most ``count`` inputs of each adapter."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).to(self.routes.device)
        chosen = [order[self.routes[order] == route][:count] for route in self.routes.unique().tolist()]
        return self.select(torch.cat(chosen).sort().values) if chosen else self

    def without(self, adapter: int) -> RouterMemory:
        """Drop all inputs with this route or origin. The numbers of later adapters move down by one."""
        kept = self.select((self.routes != adapter) & (self.origins != adapter))
        routes, origins = (numbers - (numbers > adapter).long() for numbers in (kept.routes, kept.origins))
        return RouterMemory(kept.features, routes, origins, kept.is_bare)

    def fit(self, seed: int, unknown: int | None = None) -> OutOfDistribution:
        """Fit ``OutOfDistribution`` to these inputs, without all texts and instructions of the task ``unknown``."""
        ood = OutOfDistribution(self.features.shape[1]).to(self.features.device)
        kept = self
        if unknown is not None:
            kept = self.select((self.routes != unknown) & (self.origins != unknown))
        # A group for each pair of route and origin: what two kinds of text differ in must not count as noise.
        groups = kept.routes * (1 + int(self.origins.max())) + kept.origins
        ood.fit(kept.features, groups, kept.is_bare, seed)
        return ood

    def tensors(self) -> dict[str, Tensor]:
        """The tensors as files keep them, in small types: half precision is enough for normalised states."""
        return {
            "features": self.features.half(),
            "routes": self.routes.to(torch.int16),
            "origins": self.origins.to(torch.int16),
            "is_bare": self.is_bare.to(torch.uint8),
        }


def read_router_memory(tensors: Mapping[str, Tensor], features: int, adapters: int) -> RouterMemory:
    """Restore a memory from ``RouterMemory.tensors``.

    Raises:
        ValueError: these are other tensors, or they do not fit that many features and adapters.
    """
    names = [f.name for f in fields(RouterMemory)]
    if sorted(tensors) != sorted(names):
        raise ValueError(f"should hold {', '.join(names)}, found {', '.join(sorted(tensors))}")
    rows = len(tensors["routes"])
    shapes = {name: tuple(tensors[name].shape) for name in names}
    if shapes != {"features": (rows, features), **dict.fromkeys(names[1:], (rows,))}:
        raise ValueError(f"sizes {shapes} do not fit {features} features")
    found = RouterMemory(
        tensors["features"].float(), tensors["routes"].long(), tensors["origins"].long(), tensors["is_bare"].bool()
    )
    if not found.features.isfinite().all():
        raise ValueError("features are not finite")
    numbers = torch.cat([found.routes, found.origins])
    if rows and not (int(numbers.min()) >= 0 and int(numbers.max()) < adapters):
        raise ValueError(f"adapters should be numbered 0 to {adapters - 1}")
    return found
