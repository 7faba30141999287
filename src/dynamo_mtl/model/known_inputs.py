"""A sample of the inputs that a router knows, as features without text: what stays in a checkpoint of its data.

``Novelty`` learns from it what is known; a task that is added later learns from it what belongs to the older ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dynamo_mtl.model.novelty import Novelty


@dataclass(frozen=True)
class KnownInputs:
    """Training texts, each bare, with an instruction, and with one of another task."""

    features: Tensor
    """``(n, router.feature_size)``."""
    routes: Tensor
    """``(n,)`` adapters that they belong to."""
    origins: Tensor
    """``(n,)`` adapters of the tasks that their texts come from."""
    is_bare: Tensor
    """``(n,)``."""

    def __len__(self) -> int:
        return len(self.routes)

    def select(self, rows: Tensor) -> KnownInputs:
        """Some of them, by number or mask."""
        return KnownInputs(*(getattr(self, f.name)[rows] for f in fields(self)))

    def to(self, device: torch.device) -> KnownInputs:
        """The same on another device."""
        return KnownInputs(*(getattr(self, f.name).to(device) for f in fields(self)))

    def joined(self, other: KnownInputs) -> KnownInputs:
        """Both, one after the other."""
        return KnownInputs(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def sample(self, count: int, seed: int) -> KnownInputs:
        """A random choice of at most ``count`` inputs of each adapter."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).to(self.routes.device)
        chosen = [order[self.routes[order] == route][:count] for route in self.routes.unique().tolist()]
        return self.select(torch.cat(chosen).sort().values) if chosen else self

    def without(self, adapter: int) -> KnownInputs:
        """Those that have nothing to do with an adapter, which is then gone: higher numbers move down."""
        kept = self.select((self.routes != adapter) & (self.origins != adapter))
        routes, origins = (numbers - (numbers > adapter).long() for numbers in (kept.routes, kept.origins))
        return KnownInputs(kept.features, routes, origins, kept.is_bare)

    def fit(self, seed: int, unknown: int | None = None) -> Novelty:
        """Learn what is known; ``unknown`` is a task of which nothing is: no text, and no instruction."""
        novelty = Novelty(self.features.shape[1]).to(self.features.device)
        kept = self
        if unknown is not None:
            kept = self.select((self.routes != unknown) & (self.origins != unknown))
        # Crossed inputs apart from others of their task: what two kinds of text differ in must not count as noise.
        groups = kept.routes * (1 + int(self.origins.max())) + kept.origins
        novelty.fit(kept.features, groups, kept.is_bare, seed)
        return novelty

    def tensors(self) -> dict[str, Tensor]:
        """As a file keeps them: half precision is enough for normalised states, and a byte for a number."""
        return {
            "features": self.features.half(),
            "routes": self.routes.to(torch.int16),
            "origins": self.origins.to(torch.int16),
            "is_bare": self.is_bare.to(torch.uint8),
        }


def read_known_inputs(tensors: Mapping[str, Tensor], features: int, adapters: int) -> KnownInputs:
    """What ``KnownInputs.tensors`` gave.

    Raises:
        ValueError: other tensors, or not of that many features and adapters.
    """
    names = [f.name for f in fields(KnownInputs)]
    if sorted(tensors) != sorted(names):
        raise ValueError(f"should hold {', '.join(names)}, found {', '.join(sorted(tensors))}")
    rows = len(tensors["routes"])
    shapes = {name: tuple(tensors[name].shape) for name in names}
    if shapes != {"features": (rows, features), **dict.fromkeys(names[1:], (rows,))}:
        raise ValueError(f"sizes {shapes} do not fit {features} features")
    found = KnownInputs(
        tensors["features"].float(), tensors["routes"].long(), tensors["origins"].long(), tensors["is_bare"].bool()
    )
    if not found.features.isfinite().all():
        raise ValueError("features are not finite")
    numbers = torch.cat([found.routes, found.origins])
    if rows and not (int(numbers.min()) >= 0 and int(numbers.max()) < adapters):
        raise ValueError(f"adapters should be numbered 0 to {adapters - 1}")
    return found
