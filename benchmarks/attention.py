"""Attention in bf16 on a CPU, with and without gradient: the library's kernel against the plain form.

``python benchmarks/attention.py results/bench-attention.json``

Paired and interleaved runs in one process; the ratio is library time over plain time, its median and quartiles.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness import machine
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.model.attention import attention, attention_in_chunks

SHAPES = ((16, 12), (8, 40), (12, 210), (4, 250))
"""Rows and lengths; 12 heads of width 32, as in MiniLM."""
Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def library(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """What ``torch`` offers."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Products and a softmax; without gradient over few rows at a time."""
    return (attention if torch.is_grad_enabled() else attention_in_chunks)(query, key, value, mask)


def seconds(run: Attention, inputs: list[Tensor], mask: Tensor, *, with_gradient: bool) -> float:
    """One call, forward and, if asked for, backward."""
    began = time.perf_counter()
    with torch.set_grad_enabled(with_gradient):
        output = run(*inputs, mask)
        if with_gradient:
            output.sum().backward()
    return time.perf_counter() - began


def race(rows: int, length: int, *, with_gradient: bool) -> dict[str, float]:
    """The paired ratio for one shape, after checking that both give the same."""
    torch.manual_seed(0)
    inputs = [torch.randn(rows, 12, length, 32, dtype=torch.bfloat16, requires_grad=with_gradient) for _ in range(3)]
    mask = torch.ones(rows, 1, 1, length, dtype=torch.bool)
    mask[..., -2:] = False
    with torch.set_grad_enabled(with_gradient):
        torch.testing.assert_close(library(*inputs, mask), plain(*inputs, mask), atol=2e-2, rtol=2e-2)
    runs = [[seconds(run, inputs, mask, with_gradient=with_gradient) for run in (library, plain)] for _ in range(33)]
    low, median, high = statistics.quantiles([one / other for one, other in runs[3:]], n=4)
    return {"rows": rows, "length": length, "ratio": median, "ratio_quartile_1": low, "ratio_quartile_3": high}


if __name__ == "__main__":
    result = {
        "torch": torch.__version__,
        "machine": machine(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "races": [race(*shape, with_gradient=True) for shape in SHAPES],
        "races_without_gradient": [race(*shape, with_gradient=False) for shape in SHAPES],
    }
    path = Path(sys.argv[1])
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))
