"""Saves and loads a model as a folder that other programs can read.

    config.yaml · dynamo.json · adapters/<task>/ (a PEFT folder) · heads/<task>.safetensors · router.safetensors
    novelty.safetensors · known_inputs.safetensors · vocabularies/<task>.json · tokenizer files · manifest.json
    after full fine-tuning also backbone.safetensors

Everything is safetensors, JSON or YAML, never code. ``storage.py`` says how the folder is written and verified.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dynamo_mtl.checkpoint.metadata import METADATA, Metadata, read_metadata
from dynamo_mtl.checkpoint.peft_format import load_adapter, read_tensors, save_adapter
from dynamo_mtl.errors import CheckpointError
from dynamo_mtl.model.dynamo import DynamoModel
from dynamo_mtl.model.ood import read_router_memory
from dynamo_mtl.storage import verify_folder, write_folder

CONFIG = "config.yaml"
NOVELTY = "novelty.safetensors"
MEMORY = "known_inputs.safetensors"
CARD = "README.md"
_CUTTING = {"max_length", "stride", "pad_to_multiple_of", "truncation_strategy", "truncation", "padding"}
"""Settings that make a published tokenizer pad and truncate texts."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json",
                   "merges.txt", "sentencepiece.bpe.model", "config.json")  # fmt: skip


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
        for name in model.task_names:
            place, layers = staging / "adapters" / name, model.encoder.config.num_layers
            save_adapter(place, model.bank[name], model.tap_layer, layers, metadata.backbone)
            save_file(_tensors(model.head(name)), staging / "heads" / f"{name}.safetensors")
        save_file(_tensors(model.router), staging / "router.safetensors")
        if model.ood.is_fitted:
            save_file(_tensors(model.ood), staging / NOVELTY)
        if model.memory is not None:
            save_file(model.memory.tensors(), staging / MEMORY)
        if not model.config.freeze_backbone:
            save_file(_tensors(model.encoder), staging / "backbone.safetensors")
        for name, vocabulary in vocabularies.items():
            (staging / "vocabularies" / f"{name}.json").write_text(vocabulary, encoding="utf-8")
        copy_tokenizer(tokenizer, staging)
        if extra is not None:
            extra(staging)

    try:
        write_folder(folder, fill)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: the checkpoint could not be written ({error})") from error


def copy_tokenizer(source: Path, place: Path) -> None:
    """Copy the tokenizer's files that exist and are not in ``place`` yet, changed to how the tokenizer is used here.

    Published files may pad and truncate texts, and may treat a special token inside a text as structure. The copies do
    neither.
    """
    for name in TOKENIZER_FILES:
        if not (source / name).is_file() or (place / name).exists():
            continue
        if name not in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(source / name, place / name)
            continue
        settings = json.loads((source / name).read_text(encoding="utf-8"))
        if name == "tokenizer.json":
            settings |= {"truncation": None, "padding": None}
        else:
            settings = {key: value for key, value in settings.items() if key not in _CUTTING}
            settings["split_special_tokens"] = True
        (place / name).write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def open_checkpoint(folder: Path) -> Metadata:
    """Read ``dynamo.json`` and verify every file of the folder. Format 1 has no manifest and is not verified.

    Raises:
        CheckpointError: not a checkpoint, a newer format, or a missing or damaged file.
    """
    metadata = read_metadata(folder)
    if metadata.format > 1:
        verify_folder(folder)
    return metadata


def load_checkpoint(
    folder: Path,
    metadata: Metadata,
    model: DynamoModel,
    weight_hash: str,
    with_router: bool = True,
    added: str | None = None,
) -> None:
    """Load adapters, heads and, if ``with_router``, the router into a model of the same tasks and backbone.

    The model may have one task more as its last one, ``added``, whose parameters are left unchanged.

    Raises:
        CheckpointError: different tasks, a different backbone, a missing file, or tensors that do not fit.
    """
    expected = [name for name in model.task_names if name != added]
    if metadata.tasks != expected:
        raise CheckpointError(
            f"{folder}: was trained for the tasks {', '.join(metadata.tasks)}, not {', '.join(expected)}"
        )
    if metadata.weight_hash != weight_hash:
        raise CheckpointError(
            f"{folder}: was trained over other backbone weights ({metadata.backbone}, {metadata.weight_hash[:12]}) "
            f"than those found ({weight_hash[:12]})"
        )
    for name in expected:
        load_task(folder, model, name)
    if with_router:
        fresh = None if added is None else f"branches.{len(model.router.branches) - 1}."
        _load(model.router, folder / "router.safetensors", fresh)
        if (folder / NOVELTY).is_file():  # phase 1 has no known inputs yet
            try:
                model.ood.take(read_tensors(folder / NOVELTY))
            except ValueError as error:
                raise CheckpointError(f"{folder / NOVELTY}: {error}") from error
        if (folder / MEMORY).is_file():
            _load_memory(model, folder / MEMORY)
    if not model.config.freeze_backbone:
        _load(model.encoder, folder / "backbone.safetensors")


def load_task(folder: Path, model: DynamoModel, name: str) -> None:
    """Load one task's adapter and head from a checkpoint."""
    _load(model.head(name), folder / "heads" / f"{name}.safetensors")
    load_adapter(folder / "adapters" / name, model.bank[name], model.tap_layer, model.encoder.config.num_layers)


def _load(module: torch.nn.Module, path: Path, fresh: str | None = None) -> None:
    """Load a module's tensors, all but those whose names begin with ``fresh``."""
    tensors = read_tensors(path)
    if fresh is not None:
        tensors.update({name: own for name, own in module.state_dict().items() if name.startswith(fresh)})
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit the configuration: {' '.join(str(error).split())}") from error


def _load_memory(model: DynamoModel, path: Path) -> None:
    try:
        tensors = read_tensors(path, (torch.float16, torch.int16, torch.uint8))
        known = read_router_memory(tensors, model.router.feature_size, len(model.task_names))
        known = known.to(model.ood.center.device)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    model.memory = known
