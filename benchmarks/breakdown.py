"""Where the time of a routed forward goes, and how near it is to the matrix products that nobody can leave out."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import rivals
import torch
from harness import seconds
from rivals import Inputs, mixed_lengths, routed_forward, routed_model, spread
from torch.nn import functional as F

from dynamo_mtl.model.dynamo import DynamoModel

RUNS = 11
KINDS = {
    "linear layers": ("addmm", "linear", "mkldnn_linear"),
    "adapters": ("grouped_mm", "mm"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "activation and norm": ("gelu", "layer_norm"),
    "moving rows": ("index", "cat", "copy", "gather", "sort", "scatter"),
}
"""Parts of operators' names → what they do here; the first that fits counts."""


def breakdown(device: torch.device) -> dict[str, Any]:
    """Shares of time by kind of operation, and the time of the bare products, for both shapes."""
    shares: dict[str, dict[str, float]] = {}
    limits: dict[str, dict[str, float]] = {}
    for shape in rivals.SHAPES:
        model = routed_model(shape, 5, device)
        inputs = Inputs.make(mixed_lengths(), model.encoder.config.first_position, device)
        forward = partial(routed_forward, model, inputs, spread(model, inputs))
        with torch.inference_mode():
            forward()
            shares[shape] = _shares(forward)
            tokens = len(inputs.batch.ids)
            limits[shape] = {
                "routed_ms": _median_ms(forward, device),
                "products_ms": _median_ms(partial(_products, model, tokens), device),
            }
    return {"shares": shares, "limits": limits}


def _shares(forward: Callable[[], object]) -> dict[str, float]:
    with torch.profiler.profile() as profile:
        for _ in range(3):
            forward()
    times: dict[str, float] = defaultdict(float)
    for event in profile.key_averages():
        name = event.key.removeprefix("aten::")
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "everything else")
        times[kind] += event.self_cpu_time_total + event.self_device_time_total
    total = sum(times.values())
    return {kind: times[kind] / total for kind in [*KINDS, "everything else"]}


def _products(model: DynamoModel, tokens: int) -> None:
    """The linear layers of the backbone on as many tokens, and nothing else."""
    for layer in model.encoder.layers:
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                F.linear(torch.zeros(tokens, module.in_features, dtype=model.dtype), module.weight, module.bias)


def _median_ms(run: Callable[[], object], device: torch.device) -> float:
    run()
    return 1000 * statistics.median(seconds(run, device) for _ in range(RUNS))
