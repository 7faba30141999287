"""How the cost of a routed forward grows: over the number of adapters and over the length of the inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import Race, race
from rivals import Inputs, mixed_lengths, peft_model, plain_model, routed_forward, routed_model, spread

ADAPTERS = (1, 2, 5, 16, 64, 128)
LENGTHS = (16, 32, 64, 128, 256)
TOKENS = 2048
"""In a batch of the curve over lengths."""
PAIRS = 5


def races(device: torch.device) -> dict[str, Race]:
    """Ratios at the ends of the curves, with the curves in their details."""
    return {"curve_over_adapters": _over_adapters(device), "curve_over_lengths": _over_lengths(device)}


def _over_adapters(device: torch.device) -> Race:
    model = routed_model("minilm", ADAPTERS[0], device)
    inputs = Inputs.make(mixed_lengths(), model.encoder.config.first_position, device)
    one = partial(routed_forward, model, inputs, spread(model, inputs))
    curves: dict[str, dict[int, float]] = {"top-1": {}, "all mixed": {}, "PEFT adapter_names": {}}
    last: Race | None = None
    for adapters in ADAPTERS:
        for name, soft in (("top-1", False), ("all mixed", True)):
            own = routed_model("minilm", adapters, device, top_k=adapters if soft else 1)
            forward = partial(routed_forward, own, inputs, spread(own, inputs, soft))
            found = _against(forward, one, device)
            curves[name][adapters] = found.ratio
            last = last if soft else found
        hard = routed_model("minilm", adapters, device)
        rival = peft_model(hard, "minilm", hard.dtype, device)
        names = [hard.task_names[n] for n in spread(hard, inputs).argmax(dim=1).tolist()]
        forward = partial(rival, input_ids=inputs.padded, attention_mask=inputs.mask, adapter_names=names)
        curves["PEFT adapter_names"][adapters] = _against(forward, one, device).ratio
    assert last is not None
    return Race(
        last.ratio, last.low, last.high, 1.2, False,
        "time of a routed forward with 128 adapters over one with a single adapter, top-1", {"curves": curves},
    )  # fmt: skip


def _over_lengths(device: torch.device) -> Race:
    """Milliseconds of 2,048 tokens in rows of one length, so that padding costs nobody anything."""
    model = routed_model("minilm", 5, device)
    plain: Any = plain_model("minilm", model.dtype, device)
    curves: dict[str, dict[int, float]] = {"routed": {}, "transformers, no adapters": {}}
    last: Race | None = None
    for length in LENGTHS:
        inputs = Inputs.make([length] * (TOKENS // length), model.encoder.config.first_position, device)
        last = _against(
            partial(plain, inputs.padded, attention_mask=inputs.mask),
            partial(routed_forward, model, inputs, spread(model, inputs)),
            device,
        )
        curves["routed"][length] = last.details["below_ms"]
        curves["transformers, no adapters"][length] = last.details["above_ms"]
    assert last is not None
    what = "time of transformers without adapters over a routed forward, rows of 256 tokens"
    return Race(last.ratio, last.low, last.high, 1.0, True, what, {"curves": curves, "tokens": TOKENS})


def _against(above: Callable[[], object], below: Callable[[], object], device: torch.device) -> Race:
    with torch.inference_mode():
        return race(above, below, device, target=1.0, at_least=True, what="", pairs=PAIRS)
