"""Writes adapters as PEFT folders (``adapter_config.json``, ``adapter_model.safetensors``) and reads them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynamo_mtl.errors import CheckpointError
from dynamo_mtl.model.adapter import Adapter, LoraConfig
from dynamo_mtl.model.encoder import SITES

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# Our site → the module path that published encoders and PEFT use.
PATHS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}


def save_adapter(folder: Path, adapter: Adapter, first_layer: int, layers: int, backbone: str) -> None:
    """Write an adapter that sits in the layers from ``first_layer`` up to ``layers``."""
    folder.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    for layer in range(first_layer, layers):
        for site in adapter.config.sites:
            pair = adapter.pair(layer, site)
            assert pair is not None
            for letter, tensor in zip("AB", pair, strict=True):
                tensors[_key(layer, site, letter)] = tensor.detach().cpu().contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    settings = _settings(adapter.config, first_layer, layers, backbone)
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _key(layer: int, site: str, letter: str) -> str:
    return f"base_model.model.encoder.layer.{layer}.{PATHS[site]}.lora_{letter}.weight"


def _settings(config: LoraConfig, first_layer: int, layers: int, backbone: str) -> dict[str, Any]:
    # A full pattern: the bare name "output.dense" would also match the attention's output, and layers below the tap.
    numbers = "|".join(str(layer) for layer in range(first_layer, layers))
    paths = "|".join(PATHS[site].replace(".", r"\.") for site in SITES if site in config.sites)
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": backbone,
        "revision": None,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.use_rslora,
        "target_modules": rf".*encoder\.layer\.({numbers})\.({paths})",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def load_adapter(folder: Path, adapter: Adapter, first_layer: int, layers: int) -> None:
    """Load an adapter that ``save_adapter`` wrote into an adapter with the same settings.

    Raises:
        CheckpointError: a missing file, other settings, or tensors that do not fit.
    """
    stored = read_adapter_config(folder)
    config = adapter.config
    for key, value in (("r", config.rank), ("lora_alpha", config.alpha), ("use_rslora", config.use_rslora)):
        # The tensors could fit all the same, but the answers would be wrong.
        if stored.get(key) != value:
            raise CheckpointError(
                f"{folder / CONFIG}: was trained with {key} {stored.get(key)!r}, the configuration says {value!r}"
            )
    path = folder / WEIGHTS
    tensors = read_tensors(path)
    for layer in range(first_layer, layers):
        for site in config.sites:
            pair = adapter.pair(layer, site)
            assert pair is not None
            for letter, parameter in zip("AB", pair, strict=True):
                key = _key(layer, site, letter)
                tensor = tensors.pop(key, None)
                if tensor is None or tensor.shape != parameter.shape:
                    found = "nothing" if tensor is None else f"shape {tuple(tensor.shape)}"
                    raise CheckpointError(f"{path}: {key} should have shape {tuple(parameter.shape)}, found {found}")
                with torch.no_grad():
                    parameter.copy_(tensor)
    if tensors:
        raise CheckpointError(f"{path}: unexpected tensor {next(iter(tensors))}")


def read_tensors(path: Path, types: tuple[torch.dtype, ...] = (torch.float32,)) -> dict[str, Tensor]:
    """Read the tensors of a file, and check that they are finite and of the given types. Training writes no others.

    Raises:
        CheckpointError: unreadable, another type, or values that are not finite.
    """
    try:
        tensors = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from error
    return checked_tensors(path, tensors, types)


def checked_tensors(path: Path, tensors: dict[str, Tensor], types: tuple[torch.dtype, ...]) -> dict[str, Tensor]:
    """Return ``tensors`` unchanged. Raises ``CheckpointError`` for another type or values that are not finite."""
    for name, tensor in tensors.items():
        if tensor.dtype not in types:
            expected, found = (str(dtype).removeprefix("torch.") for dtype in (types[0], tensor.dtype))
            raise CheckpointError(f"{path}: {name} should be {expected}, found {found}")
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds values that are not finite")
    return tensors


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The settings of a PEFT folder. Raises ``CheckpointError`` if they cannot be read."""
    path = folder / CONFIG
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
