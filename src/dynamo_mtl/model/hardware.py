"""Finds out what the hardware can do, for all other modules.

oneDNN is asked too, since it can be set not to use instructions that the CPU has (``ONEDNN_MAX_CPU_ISA``).
"""

from __future__ import annotations

import functools

import torch


@functools.cache
def cpu_has(capability: str) -> bool:
    """Whether this CPU has a capability, under PyTorch's name for it; false where PyTorch cannot tell."""
    return bool(torch.cpu.get_capabilities().get(capability)) if hasattr(torch.cpu, "get_capabilities") else False


@functools.cache
def onednn_multiplies_bf16() -> bool:
    """Whether oneDNN has products in bf16 here: from AVX-512 on, or with AVX-NE-CONVERT."""
    asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch.backends.mkldnn.is_available() and asked is not None and bool(asked())


@functools.cache
def fuses_bf16() -> bool:
    """Whether a linear layer in bf16 can be one product with its bias, activation or residual on this CPU."""
    return onednn_multiplies_bf16() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def has_amx() -> bool:
    """Whether this CPU computes bf16 products with AMX, on tiles."""
    return onednn_multiplies_bf16() and cpu_has("amx_bf16")


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type for large products: as configured, or bf16 where ``device`` multiplies it fast."""
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = onednn_multiplies_bf16() and (cpu_has("avx512_bf16") or cpu_has("amx_bf16"))
    return torch.bfloat16 if device.type == "cpu" and fast else torch.float32
