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
    "adapters": ("addmm_", "_grouped_mm", "mm"),
    "attention": ("bmm", "_softmax", "masked_fill_", "_scaled_dot_product_flash_attention_for_cpu", "varlen_attn"),
    "linear layers": ("addmm", "mkldnn::_linear_pointwise"),
    "activation and norm": ("gelu", "gelu_", "native_layer_norm"),
    "moving rows": ("index_select", "index", "index_add", "cat", "copy_", "gather", "sort", "scatter_", "scatter_add_"),
}
"""Names of operators → what they do here. Products by the matrices of adapters are the only ones without a bias."""


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
        kind = next((kind for kind, names in KINDS.items() if name in names), "everything else")
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
