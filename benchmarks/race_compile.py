"""``torch.compile`` over the encoder's layers, the option ``training.compile``, against running them as they are."""

from __future__ import annotations

import time
from functools import partial

import torch
from harness import Race, race
from rivals import Inputs, mixed_lengths, routed_forward, routed_model, spread


def races(device: torch.device) -> dict[str, Race]:
    """A routed forward; the seconds that compiling took are in the details."""
    eager, compiled = routed_model("minilm", 5, device), routed_model("minilm", 5, device)
    inputs = Inputs.make(mixed_lengths(), eager.encoder.config.first_position, device)
    for layer in compiled.encoder.layers:
        layer.compile()
    with torch.inference_mode():
        weights = spread(eager, inputs)
        began = time.perf_counter()
        ours = routed_forward(compiled, inputs, weights)
        seconds = time.perf_counter() - began
        torch.testing.assert_close(ours, routed_forward(eager, inputs, weights), atol=0.2, rtol=0.2)
        return {
            "compiled_over_eager": race(
                partial(routed_forward, compiled, inputs, weights), partial(routed_forward, eager, inputs, weights),
                device, target=1.0, at_least=False, compile_seconds=seconds,
                what="time of a routed forward through compiled layers over one through layers as they are",
            )
        }  # fmt: skip
