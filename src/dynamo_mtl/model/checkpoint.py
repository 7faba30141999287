"""A saved model: a folder that other programs can read.

    config.yaml · dynamo.json · adapters/<task>/ (a PEFT folder) · heads/<task>.safetensors · router.safetensors
    vocabularies/<task>.json · tokenizer files · manifest.json · after full fine-tuning also backbone.safetensors

Everything is safetensors, JSON or YAML, never code. ``storage.py`` says how the folder is written and verified.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynamo_mtl.errors import CheckpointError
from dynamo_mtl.model.dynamo import DynamoModel
from dynamo_mtl.model.encoder import SITES
from dynamo_mtl.model.lora import Adapter
from dynamo_mtl.model.metadata import METADATA, Metadata, read_metadata
from dynamo_mtl.storage import verify_folder, write_folder

CONFIG = "config.yaml"
NOVELTY = "novelty.safetensors"
CARD = "README.md"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json",
                   "merges.txt", "sentencepiece.bpe.model", "config.json")  # fmt: skip
# Our site → the module path that published encoders and PEFT use.
_PEFT_PATHS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}


def save_checkpoint(
    folder: Path,
    model: DynamoModel,
    metadata: Metadata,
    config: str,
    vocabularies: dict[str, str],
    tokenizer: Path,
    extra: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint, replacing an older one at the same place only once the new one is complete.

    Args:
        folder: final place.
        model: what is saved: adapters, heads and router; the backbone only if it was trained.
        metadata: contents of ``dynamo.json``.
        config: the resolved configuration as YAML.
        vocabularies: own target vocabularies as JSON texts, by task.
        tokenizer: folder to copy the tokenizer's files from.
        extra: writes further files into the folder that it is given.

    Raises:
        CheckpointError: the folder cannot be written; an older checkpoint stays as it was.
    """

    def fill(staging: Path) -> None:
        (staging / "heads").mkdir()
        (staging / "vocabularies").mkdir()
        (staging / METADATA).write_text(json.dumps(asdict(metadata), indent=2) + "\n", encoding="utf-8")
        (staging / CONFIG).write_text(config, encoding="utf-8")
        (staging / CARD).write_text(_model_card(model, metadata), encoding="utf-8")
        for name in model.task_names:
            _save_adapter(staging / "adapters" / name, model.bank[name], model, metadata.backbone)
            save_file(_tensors(model.head(name)), staging / "heads" / f"{name}.safetensors")
        save_file(_tensors(model.router), staging / "router.safetensors")
        if model.novelty.is_fitted:
            save_file(_tensors(model.novelty), staging / NOVELTY)
        if not model.config.freeze_backbone:
            save_file(_tensors(model.encoder), staging / "backbone.safetensors")
        for name, vocabulary in vocabularies.items():
            (staging / "vocabularies" / f"{name}.json").write_text(vocabulary, encoding="utf-8")
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, staging / name)
        if extra is not None:
            extra(staging)

    try:
        write_folder(folder, fill)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: the checkpoint could not be written ({error})") from error


def _model_card(model: DynamoModel, metadata: Metadata) -> str:
    rows = [
        f"| {name} | {model.bank[name].config.rank} | {metadata.dataset_sizes.get(name, 'unknown')} |"
        for name in model.task_names
    ]
    return "\n".join(
        [
            "---",
            "library_name: dynamo-mtl",
            f"base_model: {metadata.backbone}",
            "tags: [lora, multi-task, routing]",
            "---",
            "",
            f"# DYNAMO model over {metadata.backbone}",
            "",
            f"One frozen backbone, {len(rows)} adapters and heads, one router ({metadata.phase}, seed {metadata.seed}, "
            f"{metadata.train_seconds / 60:.0f} minutes of training on {metadata.device}).",
            "",
            "| task | rank | training examples |",
            "|---|---|---|",
            *rows,
            "",
            "```python",
            "from dynamo_mtl import DynamoInference",
            "",
            'DynamoInference("PATH").predict("A text.", return_routing_info=True)',
            "```",
            "",
        ]
    )


def _tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def _save_adapter(folder: Path, adapter: Adapter, model: DynamoModel, backbone: str) -> None:
    folder.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    for layer in range(model.tap_layer, model.encoder.config.num_layers):
        for site in adapter.config.sites:
            pair = adapter.pair(layer, site)
            assert pair is not None
            path = f"base_model.model.encoder.layer.{layer}.{_PEFT_PATHS[site]}"
            for letter, tensor in zip("AB", pair, strict=True):
                tensors[f"{path}.lora_{letter}.weight"] = tensor.detach().cpu().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = _peft_config(adapter, model, backbone)
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _peft_config(adapter: Adapter, model: DynamoModel, backbone: str) -> dict[str, Any]:
    # A full pattern: the bare name "output.dense" would also match the attention's output, and layers below the tap.
    layers = "|".join(str(layer) for layer in range(model.tap_layer, model.encoder.config.num_layers))
    paths = "|".join(_PEFT_PATHS[site].replace(".", r"\.") for site in SITES if site in adapter.config.sites)
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": backbone,
        "revision": None,
        "r": adapter.config.rank,
        "lora_alpha": adapter.config.alpha,
        "lora_dropout": adapter.config.dropout,
        "use_rslora": adapter.config.use_rslora,
        "target_modules": rf".*encoder\.layer\.({layers})\.({paths})",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def open_checkpoint(folder: Path) -> Metadata:
    """Read ``dynamo.json`` and verify every file of the folder.

    Raises:
        CheckpointError: not a checkpoint, of a newer format, or a file of it is missing or damaged.
    """
    metadata = read_metadata(folder)
    if metadata.format > 1:
        verify_folder(folder)
    return metadata


def load_checkpoint(
    folder: Path, metadata: Metadata, model: DynamoModel, weight_hash: str, with_router: bool = True
) -> None:
    """Load adapters, heads and, unless told not to, the router into a model of the same tasks and backbone.

    Raises:
        CheckpointError: other tasks, another backbone, a missing file or tensors that do not fit.
    """
    if metadata.tasks != model.task_names:
        raise CheckpointError(
            f"{folder}: was trained for the tasks {', '.join(metadata.tasks)}, not {', '.join(model.task_names)}"
        )
    if metadata.weight_hash != weight_hash:
        raise CheckpointError(
            f"{folder}: was trained over other backbone weights ({metadata.backbone}, {metadata.weight_hash[:12]}) "
            f"than those found ({weight_hash[:12]})"
        )
    for name in model.task_names:
        load_task(folder, model, name)
    if with_router:
        _load(model.router, folder / "router.safetensors")
        if (folder / NOVELTY).is_file():  # phase 1 knows no inputs yet
            try:
                model.novelty.take(_read(folder / NOVELTY))
            except ValueError as error:
                raise CheckpointError(f"{folder / NOVELTY}: {error}") from error
    if not model.config.freeze_backbone:
        _load(model.encoder, folder / "backbone.safetensors")


def load_task(folder: Path, model: DynamoModel, name: str) -> None:
    """Load one task's adapter and head from a checkpoint."""
    _load(model.head(name), folder / "heads" / f"{name}.safetensors")
    _check_scaling(folder / "adapters" / name / "adapter_config.json", model.bank[name])
    path = folder / "adapters" / name / "adapter_model.safetensors"
    tensors = _read(path)
    adapter = model.bank[name]
    for layer in range(model.tap_layer, model.encoder.config.num_layers):
        for site in adapter.config.sites:
            pair = adapter.pair(layer, site)
            assert pair is not None
            for letter, parameter in zip("AB", pair, strict=True):
                key = f"base_model.model.encoder.layer.{layer}.{_PEFT_PATHS[site]}.lora_{letter}.weight"
                tensor = tensors.pop(key, None)
                if tensor is None or tensor.shape != parameter.shape:
                    found = "nothing" if tensor is None else f"shape {tuple(tensor.shape)}"
                    raise CheckpointError(f"{path}: {key} should have shape {tuple(parameter.shape)}, found {found}")
                with torch.no_grad():
                    parameter.copy_(tensor)
    if tensors:
        raise CheckpointError(f"{path}: unexpected tensor {next(iter(tensors))}")


def _check_scaling(path: Path, adapter: Adapter) -> None:
    """Refuse an adapter that was trained with another scaling: its tensors would fit and its answers be wrong."""
    try:
        stored = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    config = adapter.config
    for key, value in (("r", config.rank), ("lora_alpha", config.alpha), ("use_rslora", config.use_rslora)):
        if stored.get(key) != value:
            raise CheckpointError(
                f"{path}: was trained with {key} {stored.get(key)!r}, the configuration says {value!r}"
            )


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, all of them fp32 and finite: what else it holds, training did not write."""
    try:
        tensors = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from error
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise CheckpointError(f"{path}: {name} should be float32, found {str(tensor.dtype).removeprefix('torch.')}")
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds values that are not finite")
    return tensors


def _load(module: torch.nn.Module, path: Path) -> None:
    try:
        module.load_state_dict(_read(path))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit the configuration: {' '.join(str(error).split())}") from error
