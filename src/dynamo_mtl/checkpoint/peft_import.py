"""Imports LoRA adapters that anybody trained with PEFT. Their update of every linear layer stays the same.

An adapter may have a rank for each module, half precision, or another choice of modules. PEFT matches its patterns
against the full name of a module in the model that was trained, such as
``roberta.encoder.layer.0.attention.self.query`` in a classifier. The keys of the weights contain these names.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynamo_mtl.checkpoint.peft_format import CONFIG, PATHS, WEIGHTS, checked_tensors, read_adapter_config, read_tensors
from dynamo_mtl.checkpoint.peft_names import is_number, is_targeted, pattern_values, read_patterns
from dynamo_mtl.config.validation import validate
from dynamo_mtl.errors import CheckpointError
from dynamo_mtl.model.adapter import Adapter, LoraConfig
from dynamo_mtl.model.encoder import SITES, EncoderConfig

logger = logging.getLogger(__name__)

PICKLED = "adapter_model.bin"
_PREFIXES = ("", "bert.", "roberta.", "camembert.")
"""Prefixes of module names: none for a bare encoder, otherwise the encoder's name in a model with a head."""
_ENCODER = re.compile(r"base_model\.model\.((?:[^.]+\.)*?)encoder\.layer\.")
_MATRIX = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern",
         "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights",
         "modules_to_save", "base_model_name_or_path"}  # fmt: skip
"""Settings that are read here."""
_WITHOUT_EFFECT = {"auto_mapping", "corda_config", "eva_config", "inference_mode", "loftq_config", "lora_ga_config",
                   "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
                   "task_type"}  # fmt: skip
"""Settings that do not affect what a trained adapter computes, or only do so if another setting is on."""
_OFF = (None, False, "none", [], {})
"""Values with which any other setting, even an unknown one, has no effect."""
_LEAVES_BACKBONE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the backbone's weights unchanged. All others change them too."""


def import_adapter(
    folder: Path, encoder: EncoderConfig, backbone: str, first_layer: int, refuse: Callable[[str], None]
) -> Adapter:
    """Import an adapter from any PEFT LoRA folder, and convert its settings.

    Every linear layer gets the same update as in PEFT. Modules with a rank or alpha of their own are padded with zeros
    to the largest rank, and the difference in scaling is multiplied into B.

    Args:
        folder: contains ``adapter_config.json`` and ``adapter_model.safetensors`` (or ``adapter_model.bin``).
        encoder: the backbone's shape.
        backbone: the backbone's name. An adapter that was trained over a backbone of another name is accepted with a
            warning, since the same weights may be stored under any name.
        first_layer: lowest layer that can have an adapter.
        refuse: called with a sentence about each part that cannot be imported (heads, layers below ``first_layer``).
            It raises an error, or returns to leave the part out.

    Raises:
        CheckpointError: not a plain LoRA, another shape, settings that contradict the weights, or what ``refuse``
            raises.
    """
    settings = read_adapter_config(folder)
    _check_kind(folder / CONFIG, settings, refuse)
    trained_over = str(settings.get("base_model_name_or_path") or backbone)
    if Path(trained_over).name.lower() != Path(backbone).name.lower():
        logger.warning("%s: was trained over %s, this model's backbone is %s", folder, trained_over, backbone)
    types = (torch.float32, torch.float16, torch.bfloat16)
    path = folder / WEIGHTS
    if not path.exists() and (folder / PICKLED).exists():
        path = folder / PICKLED
    tensors = read_tensors(path, types) if path.name == WEIGHTS else _read_pickled(path, types)
    prefix = _prefix(path, tensors)
    places = {
        f"{prefix}encoder.layer.{layer}.{PATHS[site]}": (layer, site)
        for layer in range(encoder.num_layers)
        for site in SITES
    }
    pairs = _pairs(path, tensors, places, encoder, refuse)
    scalings = _scalings(folder / CONFIG, settings, places, pairs)
    for name in [name for name in pairs if places[name][0] < first_layer]:
        refuse(
            f"{path}: {name} is in layer {places[name][0]}; adapters sit in the layers {first_layer} to "
            f"{encoder.num_layers - 1} here (model.tap_layer)"
        )
        del pairs[name]
    if not pairs:
        raise CheckpointError(f"{path}: holds no LoRA matrices of the layers from {first_layer} on")
    sites = {places[name][1] for name in pairs}
    rank = max(len(down) for down, _ in pairs.values())
    config = _imported_config(folder / CONFIG, settings, sites, rank)
    adapter = Adapter(config, encoder, first_layer)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.zero_()
        for name, (down, up) in pairs.items():
            own = adapter.pair(*places[name])
            assert own is not None
            own[0][: len(down)] = down.float()
            own[1][:, : len(down)] = up.float() * (scalings[name] / config.scaling)
    return adapter


def _check_kind(path: Path, settings: Mapping[str, Any], refuse: Callable[[str], None]) -> None:
    """Check that an adapter is a plain LoRA. Unknown settings may change anything, so they are refused."""
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type {settings.get('peft_type')!r:.60}, only LORA can be imported")
    for key, value in settings.items():
        if key not in _READ | _WITHOUT_EFFECT and value not in _OFF:
            raise CheckpointError(f"{path}: {key:.60} is {value!r:.80}, which a plain LoRA does not have")
    if not isinstance(settings.get("use_rslora", False), bool):
        raise CheckpointError(f"{path}: use_rslora should be true or false, found {settings['use_rslora']!r:.60}")
    if settings.get("init_lora_weights") not in _LEAVES_BACKBONE:
        raise CheckpointError(
            f"{path}: init_lora_weights is {settings['init_lora_weights']!r:.60}, which changes the "
            "backbone too; save the adapter as a plain one, with PEFT's path_initial_model_for_weight_conversion"
        )
    if settings.get("modules_to_save") not in _OFF:  # outside of the encoder; ``_pairs`` refuses weights inside of it
        refuse(
            f"{path}: modules_to_save is {settings['modules_to_save']!r:.80}, which a plain LoRA does not have; heads "
            "are trained here"
        )


def _prefix(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Return the prefix before ``encoder.layer`` in PEFT's module names."""
    found = sorted({match[1] for key in tensors if (match := _ENCODER.match(key))})
    if not found:
        raise CheckpointError(f"{path}: holds no LoRA matrices of an encoder's linear layers")
    if len(found) > 1 or found[0] not in _PREFIXES:
        names = ", ".join(f"{prefix}encoder" for prefix in found)
        raise CheckpointError(f"{path}: expected one encoder, bare or as a bert, roberta or camembert, found {names}")
    return found[0]


Pairs = dict[str, tuple[Tensor, Tensor]]
"""A and B by the module's name in PEFT."""


def _pairs(
    path: Path,
    tensors: Mapping[str, Tensor],
    places: Mapping[str, tuple[int, str]],
    encoder: EncoderConfig,
    refuse: Callable[[str], None],
) -> Pairs:
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _MATRIX.fullmatch(key)
        if match and match[1] in places:
            found.setdefault(match[1], {})[match[2]] = tensor
        elif not key.startswith("base_model.model.") or {"encoder", "embeddings"} & set(key.split(".")):
            raise CheckpointError(f"{path}: {key} belongs to no linear layer of this encoder")
        else:
            refuse(f"{path}: {key} belongs to no linear layer of the encoder; heads are trained here")
    pairs: Pairs = {}
    for name, pair in found.items():
        inputs, outputs = encoder.site_shape(places[name][1])
        shapes = {letter: tuple(tensor.shape) for letter, tensor in sorted(pair.items())}
        rank = next(iter(shapes.get("A", ())), 0)
        if rank < 1 or shapes != {"A": (rank, inputs), "B": (outputs, rank)}:
            raise CheckpointError(
                f"{path}: {name}: expected A (rank, {inputs}) and B ({outputs}, rank) for this backbone, found {shapes}"
            )
        pairs[name] = (pair["A"], pair["B"])
    return pairs


def _scalings(path: Path, settings: Mapping[str, Any], places: Collection[str], pairs: Pairs) -> dict[str, float]:
    """Check that the settings match the weights, and return the factor of each module's update in PEFT."""
    targeted = {name for name in places if is_targeted(path, settings, name)}
    for name in sorted(targeted ^ set(pairs)):
        say = "name {}, which has no weights" if name in targeted else "leave {} out, which has weights"
        keys = "target_modules, exclude_modules, layers_to_transform and layers_pattern"
        raise CheckpointError(f"{path}: {keys} {say.format(name)}")
    ranks, alphas = (read_patterns(path, settings, key) for key in ("rank_pattern", "alpha_pattern"))
    scalings: dict[str, float] = {}
    for name, (down, _) in pairs.items():
        rank = len(down)
        given = pattern_values(path, "rank_pattern", ranks, name) or [settings.get("r")]
        if rank not in given:
            raise CheckpointError(f"{path}: r and rank_pattern give {name} rank {given[0]!r:.60}, its weights {rank}")
        own = pattern_values(path, "alpha_pattern", alphas, name) or [_alpha(path, settings)]
        if len(set(own)) > 1:
            raise CheckpointError(
                f"{path}: alpha_pattern gives {name} {' and '.join(map(str, own))}; the first one counts, but PEFT "
                "sorts them when it saves, so that their order in training is not known"
            )
        scalings[name] = own[0] / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return scalings


def _imported_config(path: Path, settings: Mapping[str, Any], sites: Collection[str], rank: int) -> LoraConfig:
    dropout = settings.get("lora_dropout") or 0.0
    if not is_number(dropout):
        raise CheckpointError(f"{path}: lora_alpha and lora_dropout should be numbers")
    modules = "all-linear" if set(sites) == set(SITES) else [site for site in SITES if site in sites]
    own = {"rank": rank, "alpha": _alpha(path, settings), "dropout": float(dropout), "target_modules": modules}
    return validate(LoraConfig, {**own, "use_rslora": settings.get("use_rslora", False)}, str(path))


def _alpha(path: Path, settings: Mapping[str, Any]) -> float:
    if not is_number(settings.get("lora_alpha")):
        raise CheckpointError(f"{path}: lora_alpha and lora_dropout should be numbers")
    return float(settings["lora_alpha"])


def _read_pickled(path: Path, types: tuple[torch.dtype, ...]) -> dict[str, Tensor]:
    """Read the tensors of a ``torch.save`` file. Nothing but tensors is read, and no code in the file runs."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise any
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: cannot be read as tensors alone ({reason:.200})") from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.is_cpu
        for name, tensor in found.items()
    ):
        raise CheckpointError(f"{path}: should hold tensors by name, and nothing else")
    return checked_tensors(path, found, types)
