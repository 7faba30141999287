"""What the hardware is fast at."""

from __future__ import annotations

import functools

import torch


@functools.cache
def cpu_has(capability: str) -> bool:
    """Whether this CPU has a capability, under PyTorch's name for it; false where PyTorch cannot tell."""
    return bool(torch.cpu.get_capabilities().get(capability)) if hasattr(torch.cpu, "get_capabilities") else False


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type for large products: as configured, or bf16 where ``device`` multiplies it fast."""
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = cpu_has("avx512_bf16") or cpu_has("amx_bf16")
    return torch.bfloat16 if device.type == "cpu" and fast else torch.float32
