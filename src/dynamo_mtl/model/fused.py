"""Linear layers with fused bias, GELU and residual, for bf16 on a CPU.

oneDNN has such products on some CPUs, and PyTorch uses them in compiled code. Calling them directly saves three passes
over the output (``benchmarks/race_linear.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamo_mtl.model import hardware


def linear(layer: nn.Linear, inputs: Tensor, *, gelu: bool = False, plus: Tensor | None = None) -> Tensor:
    """``layer(inputs)``, then GELU or a sum.

    Args:
        layer: with a bias.
        inputs: ``(tokens, in)``.
        gelu: whether GELU follows.
        plus: ``(tokens, out)`` that is added; not together with ``gelu``.

    Returns:
        ``(tokens, out)``.
    """
    # Compiled code fuses by itself and cannot contain these calls.
    free = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    # A quantized matrix reports bf16 as its type but is stored in another one.
    plain = type(layer.weight) is nn.Parameter
    half = inputs.device.type == "cpu" and inputs.dtype == layer.weight.dtype == torch.bfloat16
    if free and plain and half and hardware.fuses_bf16():
        fused = torch.ops.mkldnn._linear_pointwise
        if plus is not None:
            return fused.binary(inputs, plus, layer.weight, layer.bias, "add")
        return fused(inputs, layer.weight, layer.bias, "gelu" if gelu else "none", [], "none")
    output = layer(inputs)
    if gelu:
        return gelu_over(output)
    if plus is not None:
        return output + plus if torch.is_grad_enabled() else output.add_(plus)
    return output


def gelu_over(fresh: Tensor) -> Tensor:
    """GELU of a tensor that nothing else uses.

    Without gradient it is computed in place, because on a CPU new memory costs more than the operation.
    """
    return F.gelu(fresh) if torch.is_grad_enabled() else torch.ops.aten.gelu_(fresh)
