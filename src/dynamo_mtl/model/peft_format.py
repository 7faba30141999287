"""Adapters as PEFT's folders: ``adapter_config.json`` and ``adapter_model.safetensors``, written and read.

Folders of our own are read back exactly as they are. Those of others may have a rank for each module, half precision or
another choice of modules: their update of every linear layer stays the same, in our form.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynamo_mtl.errors import CheckpointError
from dynamo_mtl.model.encoder import SITES, EncoderConfig
from dynamo_mtl.model.lora import Adapter, LoraConfig
from dynamo_mtl.settings import validate

logger = logging.getLogger(__name__)

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
_SITE_OF = {path: site for site, path in PATHS.items()}
_KEY = re.compile(
    r"base_model\.model\.(?:(?:bert|roberta|camembert)\.)?encoder\.layer\.(\d+)\.([a-z_.]+)\.lora_([AB])"
    r"(?:\.default)?\.weight"
)
_PLAIN = {"bias": "none", "use_dora": False, "fan_in_fan_out": False, "lora_bias": False, "modules_to_save": None,
          "layer_replication": None, "trainable_token_indices": None, "alora_invocation_tokens": None,
          "target_parameters": None, "corda_config": None}  # fmt: skip
"""Settings that change what an adapter is, and the values under which it is a plain LoRA."""
_LEAVES_BACKBONE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations under which PEFT's adapter is all that was trained; others change the backbone's weights too."""


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
    """Read an adapter of our own back, into one of the same settings.

    Raises:
        CheckpointError: a missing file, other settings, or tensors that do not fit.
    """
    stored = _read_settings(folder)
    config = adapter.config
    for key, value in (("r", config.rank), ("lora_alpha", config.alpha), ("use_rslora", config.use_rslora)):
        # Its tensors would fit, and its answers be wrong.
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
    """Tensors of a file, all of them of the given types and finite: what else it holds, training did not write.

    Raises:
        CheckpointError: unreadable, another type, or values that are not finite.
    """
    try:
        tensors = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in types:
            expected, found = (str(dtype).removeprefix("torch.") for dtype in (types[0], tensor.dtype))
            raise CheckpointError(f"{path}: {name} should be {expected}, found {found}")
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds values that are not finite")
    return tensors


def import_adapter(
    folder: Path, encoder: EncoderConfig, backbone: str, first_layer: int, refuse: Callable[[str], None]
) -> Adapter:
    """An adapter from a PEFT LoRA folder of anybody, with the settings that it has here.

    Every linear layer gets the update that PEFT would give it: modules with a rank or alpha of their own are widened
    with zeros to the largest rank, and what their scaling differs by goes into B.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        encoder: the backbone's shape.
        backbone: its name; an adapter that was trained over one of another name is taken with a warning, since the same
            weights may lie anywhere.
        first_layer: lowest layer that can have an adapter.
        refuse: is given a sentence about each part that cannot be taken over; raises, or lets it be left out.

    Raises:
        CheckpointError: not a plain LoRA, of another shape, or in layers below ``first_layer``.
    """
    settings = _read_settings(folder)
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(f"{folder / CONFIG}: peft_type {settings.get('peft_type')!r}, only LORA can be imported")
    for key, plain in _PLAIN.items():
        if settings.get(key, plain) not in (plain, None, []):
            sentence = f"{folder / CONFIG}: {key} is {settings[key]!r:.80}, which a plain LoRA does not have"
            if key != "modules_to_save":  # those are beside the adapter, not part of it
                raise CheckpointError(sentence)
            refuse(f"{sentence}; heads are trained here")
    if settings.get("init_lora_weights") not in _LEAVES_BACKBONE:
        raise CheckpointError(
            f"{folder / CONFIG}: init_lora_weights is {settings['init_lora_weights']!r:.60}, which changes the "
            "backbone too; save the adapter as a plain one, with PEFT's path_initial_model_for_weight_conversion"
        )
    trained_over = str(settings.get("base_model_name_or_path") or backbone)
    if Path(trained_over).name.lower() != Path(backbone).name.lower():
        logger.warning("%s: was trained over %s, this model's backbone is %s", folder, trained_over, backbone)
    tensors = read_tensors(folder / WEIGHTS, (torch.float32, torch.float16, torch.bfloat16))
    pairs = _pairs(folder / WEIGHTS, tensors, encoder, first_layer, refuse)
    if not pairs:
        raise CheckpointError(f"{folder / WEIGHTS}: holds no LoRA matrices of an encoder's linear layers")
    ranks = {place: len(down) for place, (down, _) in pairs.items()}
    config = _imported_config(settings, pairs, max(ranks.values()), folder)
    adapter = Adapter(config, encoder, first_layer)
    with torch.no_grad():
        for layer in range(first_layer, encoder.num_layers):
            for site in config.sites:
                own = adapter.pair(layer, site)
                assert own is not None
                for parameter in own:
                    parameter.zero_()
                if (layer, site) in pairs:
                    down, up = pairs[layer, site]
                    scaling = _scaling(settings, layer, site, ranks[layer, site])
                    own[0][: len(down)] = down.float()
                    own[1][:, : len(down)] = up.float() * (scaling / config.scaling)
    return adapter


Pairs = dict[tuple[int, str], tuple[Tensor, Tensor]]


def _pairs(
    path: Path, tensors: Mapping[str, Tensor], encoder: EncoderConfig, first_layer: int, refuse: Callable[[str], None]
) -> Pairs:
    """A and B by layer and site."""
    found: dict[tuple[int, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        site = _SITE_OF.get(match[2]) if match else None
        if match is None or site is None:
            refuse(f"{path}: {key} belongs to no linear layer of the encoder")
            continue
        layer = int(match[1])
        if not first_layer <= layer < encoder.num_layers:
            refuse(
                f"{path}: {key} is in layer {layer}; adapters sit in the layers {first_layer} to "
                f"{encoder.num_layers - 1} here (model.tap_layer)"
            )
            continue
        found.setdefault((layer, site), {})[match[3]] = tensor
    pairs: Pairs = {}
    for (layer, site), pair in found.items():
        inputs, outputs = encoder.site_shape(site)
        shapes = {letter: tuple(tensor.shape) for letter, tensor in sorted(pair.items())}
        rank = shapes.get("A", (0,))[0] if shapes.get("A") else 0
        if shapes != {"A": (rank, inputs), "B": (outputs, rank)}:
            raise CheckpointError(
                f"{path}: layer {layer}, {PATHS[site]}: expected A (rank, {inputs}) and B ({outputs}, rank) for this "
                f"backbone, found {shapes}"
            )
        pairs[layer, site] = (pair["A"], pair["B"])
    return pairs


def _imported_config(settings: Mapping[str, Any], pairs: Pairs, rank: int, folder: Path) -> LoraConfig:
    try:
        alpha, dropout = float(settings["lora_alpha"]), float(settings.get("lora_dropout") or 0.0)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG}: lora_alpha and lora_dropout should be numbers") from error
    sites = {site for _, site in pairs}
    modules = "all-linear" if sites == set(SITES) else [site for site in SITES if site in sites]
    own = {"rank": rank, "alpha": alpha, "dropout": dropout, "target_modules": modules}
    return validate(LoraConfig, {**own, "use_rslora": bool(settings.get("use_rslora"))}, str(folder / CONFIG))


def _scaling(settings: Mapping[str, Any], layer: int, site: str, rank: int) -> float:
    """What PEFT multiplies a module's update by; a pattern names a module by the end of its path."""
    name = f"encoder.layer.{layer}.{PATHS[site]}"
    alpha = float(settings["lora_alpha"])
    for pattern, own in _alphas(settings).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = own
            break
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _alphas(settings: Mapping[str, Any]) -> dict[str, float]:
    """``alpha_pattern``: patterns of module paths, of the few signs that such patterns need.

    Others are refused: a pattern from a stranger could take for ever.
    """
    given = settings.get("alpha_pattern") or {}
    try:
        found = {str(pattern): float(own) for pattern, own in given.items()}
        for pattern in found:
            re.compile(pattern)
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise CheckpointError(f"{CONFIG}: alpha_pattern should hold patterns and numbers ({error})") from error
    odd = next((p for p in found if len(p) > 200 or not re.fullmatch(r"[\w.\\|^$()\[\]-]*", p)), None)
    if odd is not None:
        raise CheckpointError(f"{CONFIG}: alpha_pattern {odd!r:.60} is no plain pattern of a module's path")
    return found


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
