"""Batches whose lengths do not come again, as in traffic and training: a CPU compiles products for every new shape."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch
from harness import WARM_UP, Race, race
from rivals import Inputs, mixed_lengths, plain_model, routed_forward, routed_model, spread

PAIRS = 15


def races(device: torch.device) -> dict[str, Race]:
    """The race ``routed_vs_transformers`` with 30 other lengths each time."""
    model = routed_model("minilm", 5, device)
    plain = plain_model("minilm", model.dtype, device)
    first = model.encoder.config.first_position
    batches = [Inputs.make(_lengths(seed), first, device, seed) for seed in range(WARM_UP + PAIRS)]

    def ours(inputs: Inputs) -> None:
        routed_forward(model, inputs, spread(model, inputs))

    def padded(inputs: Inputs) -> None:
        plain(inputs.padded, attention_mask=inputs.mask)

    with torch.inference_mode():
        return {
            "new_batches_vs_transformers": race(
                _each(padded, batches), _each(ours, batches), device, target=3.0, at_least=True, pairs=PAIRS,
                what="the same as `routed_vs_transformers`, with other lengths each time",
            )
        }  # fmt: skip


def _lengths(seed: int) -> list[int]:
    """As many as in mixed traffic, each up to a fifth shorter or longer."""
    rng = random.Random(seed)
    return [min(256, max(4, round(n * rng.uniform(0.8, 1.2)))) for n in mixed_lengths()]


def _each(run: Callable[[Inputs], None], batches: list[Inputs]) -> Callable[[], None]:
    """Run on the next batch with every call."""
    left: Iterator[Inputs] = iter(batches)
    return lambda: run(next(left))
