"""Training the router on features that were computed once, against computing them anew in every epoch."""

from __future__ import annotations

import random

import torch
from harness import Race, race
from rivals import LENGTHS, Inputs, routed_model
from torch.nn import functional as F

EXAMPLES, BATCH = 512, 256
ROUNDS = 20
"""Cached epochs that are timed together; one alone is too short to be timed."""


def races(device: torch.device) -> dict[str, Race]:
    """An epoch over the same examples either way, with the same updates."""
    model = routed_model("minilm", 5, device)
    first = model.encoder.config.first_position
    rng = random.Random(0)
    tasks = list(LENGTHS)
    owners = [rng.randrange(5) for _ in range(EXAMPLES)]
    lengths = [rng.choice(LENGTHS[tasks[owner]]) for owner in owners]
    batches = [Inputs.make(lengths[n : n + BATCH], first, device, seed=n).batch for n in range(0, EXAMPLES, BATCH)]
    routes = torch.tensor(owners, device=device).split(BATCH)
    model.router.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.router.parameters(), lr=1e-4, fused=True)
    cached = [model.trunk(batch).features.half() for batch in batches]
    with torch.inference_mode():
        torch.testing.assert_close(model.trunk(batches[0]).features, cached[0].float(), atol=2e-2, rtol=2e-2)

    def update(logits: torch.Tensor, truth: torch.Tensor) -> None:
        F.cross_entropy(logits, truth).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def through_the_model() -> None:
        for batch, truth in zip(batches, routes, strict=True):
            routing = model(batch).routing
            assert routing is not None
            update(routing.logits, truth)

    def through_the_trunk() -> None:
        for batch, truth in zip(batches, routes, strict=True):
            update(model.router(model.trunk(batch).features).logits, truth)

    def on_cached_features() -> None:
        for _ in range(ROUNDS):
            for features, truth in zip(cached, routes, strict=True):
                update(model.router(features.float()).logits, truth)

    trunk = race(through_the_trunk, on_cached_features, device, target=50, at_least=True, what="", pairs=5)
    whole = race(
        through_the_model, on_cached_features, device, target=50, at_least=True,
        what="time of a router epoch through the model over one on cached features", pairs=5,
        examples=EXAMPLES, batch=BATCH, through_the_trunk_only=trunk.ratio * ROUNDS,
    )  # fmt: skip
    return {
        "router_epoch_cached": Race(
            whole.ratio * ROUNDS, whole.low * ROUNDS, whole.high * ROUNDS, 50, True, whole.what, whole.details
        )
    }
