"""Quantizes the matrices of the frozen backbone to 8 bits: weight-only, with a scale for every row, by torchao."""

from __future__ import annotations

import logging

import torch
from torch import nn

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.model.encoder import Encoder


def quantize_layers(encoder: Encoder) -> None:
    """Quantize the layers' matrices to 8-bit integers, in place. Matrices that are quantized already stay as they are.

    Embeddings, biases and norms keep their type, and inputs and outputs have that type too: a matrix is converted back
    when it is used. Gradient flows to the inputs, not to the matrices.

    Raises:
        ConfigError: torchao is not installed.
    """
    # torchao warns about every kernel for other hardware that it cannot load.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ModuleNotFoundError as error:
        raise ConfigError(
            "model.quantization: int8 needs torchao; install it in a checkout with: pip install -e '.[quantize]'"
        ) from error
    quantize_(encoder.layers, Int8WeightOnlyConfig(), _is_plain)


def stored_bytes(encoder: Encoder) -> int:
    """Memory that the parameters of a backbone take, in bytes."""
    total = 0
    for parameter in encoder.parameters():
        flatten = getattr(parameter, "__tensor_flatten__", None)
        parts = [parameter] if flatten is None else [getattr(parameter, name) for name in flatten()[0]]
        total += sum(part.numel() * part.element_size() for part in parts if isinstance(part, torch.Tensor))
    return total


def _is_plain(module: nn.Module, _name: str) -> bool:
    return isinstance(module, nn.Linear) and type(module.weight) is nn.Parameter
