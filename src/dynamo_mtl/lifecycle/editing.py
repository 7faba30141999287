"""Edits a trained model without training: removes a task, renames a task, or imports an adapter for one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dynamo_mtl.checkpoint.folder import CONFIG, open_checkpoint
from dynamo_mtl.checkpoint.metadata import Metadata
from dynamo_mtl.checkpoint.peft_import import import_adapter
from dynamo_mtl.checkpoint.stored_config import read_system_config
from dynamo_mtl.errors import CheckpointError, ConfigError
from dynamo_mtl.messages import did_you_mean
from dynamo_mtl.model.adapter import Adapter
from dynamo_mtl.model.backbone import find_backbone, read_encoder_config
from dynamo_mtl.model.calibration import AnswerCalibration
from dynamo_mtl.model.ood import OutOfDistribution, RouterMemory
from dynamo_mtl.storage import new_folder
from dynamo_mtl.strict_yaml import dump_yaml, read_settings
from dynamo_mtl.system import System, load_system, reassemble

logger = logging.getLogger(__name__)

TASK_SECTIONS = (("data", "paths"), ("tasks",), ("lora_configs",))
"""Where a checkpoint's configuration has an entry for each task."""
CPU = torch.device("cpu")


def remove_task(checkpoint: Path, output: Path, name: str) -> Path:
    """Remove a task's adapter, head and routing. The tasks of the router's first training keep their proportions.

    Raises:
        ConfigError: no such task, or the only task of the router's first training.
        CheckpointError: unusable checkpoint.
    """
    output = new_folder(output)
    system, metadata = load_system(checkpoint, CPU, for_training=True)
    _check_known(system, name, "--name")
    if len(system.tasks) - system.config.router.added == 1 and system.route_of(name) == 0:
        raise ConfigError(f"--name: '{name}' is the only task of the router's first training; the model needs it")
    gone = system.route_of(name)
    router = system.model.router.without(gone)
    raw = _settings(checkpoint, system)
    for section in TASK_SECTIONS:
        _section(raw, section).pop(name, None)
    raw["router"] |= {"branches": router.config.branches, "branch_adapters": router.config.branch_adapters}
    names = {other: other for other in system.tasks if other != name}
    changed = _rebuilt(system, raw, names)
    changed.model.router, changed.model.ood = router, system.model.ood
    if system.model.memory is not None:
        known = system.model.memory
        changed.model.memory = known.without(gone)
        changed.model.ood = _forgetting(system.model.ood, known, gone)
    return _saved(changed, metadata, raw, names, output)


def rename_task(checkpoint: Path, output: Path, name: str, new_name: str) -> Path:
    """Give a task another name.

    Raises:
        ConfigError: no such task, or a name that is taken or not allowed.
        CheckpointError: unusable checkpoint.
    """
    output = new_folder(output)
    system, metadata = load_system(checkpoint, CPU, for_training=True)
    _check_known(system, name, "--name")
    if new_name in system.tasks:
        raise ConfigError(f"--to: there is a task '{new_name}' already; choose another name")
    raw = _settings(checkpoint, system)
    for section in TASK_SECTIONS:
        entries = _section(raw, section)
        renamed = {new_name if key == name else key: value for key, value in entries.items()}
        entries.clear()
        entries.update(renamed)
    names = {new_name if other == name else other: other for other in system.tasks}
    changed = _rebuilt(system, raw, names)
    _keep_routing(system, changed)
    return _saved(changed, metadata, raw, names, output)


def import_for(checkpoint: Path, adapter: Path, strict: bool = True) -> Adapter:
    """Import an adapter from a PEFT LoRA folder, for a checkpoint's backbone and tap layer.

    Args:
        checkpoint: the model that the adapter is for.
        adapter: the PEFT folder.
        strict: refuse an adapter if a part of it cannot be imported; otherwise leave that part out with a warning.

    Raises:
        CheckpointError: see ``peft_import.import_adapter``.
    """
    metadata = open_checkpoint(checkpoint)
    config = read_system_config(checkpoint / CONFIG)
    encoder = read_encoder_config(find_backbone(config.model.base_model_name, config.model.revision))

    def refuse(sentence: str) -> None:
        if strict:
            raise CheckpointError(f"{sentence}; --no-strict leaves it out")
        logger.warning("left out: %s", sentence)

    return import_adapter(adapter, encoder, metadata.backbone, metadata.tap_layer, refuse)


def replace_adapter(checkpoint: Path, output: Path, task: str, adapter: Path, strict: bool = True) -> Path:
    """Replace a task's adapter by one from a PEFT LoRA folder, and keep the task's head.

    Raises:
        ConfigError: no such task.
        CheckpointError: unusable checkpoint or adapter.
    """
    output = new_folder(output)
    system, metadata = load_system(checkpoint, CPU, for_training=True)
    _check_known(system, task, "--task")
    found = import_for(checkpoint, adapter, strict)
    raw = _settings(checkpoint, system)
    raw["lora_configs"][task] = found.config.model_dump()
    names = {name: name for name in system.tasks}
    changed = _rebuilt(system, raw, {name: name for name in names if name != task})
    changed.model.bank[task].load_state_dict(found.state_dict())
    changed.model.head(task).load_state_dict(system.model.head(task).state_dict())
    changed.tasks[task].calibration = AnswerCalibration()  # the old one was that of the old adapter
    _keep_routing(system, changed)
    return _saved(changed, metadata, raw, names, output)


def _check_known(system: System, name: str, option: str) -> None:
    if name not in system.tasks:
        raise ConfigError(f"{option}: no task '{name}'; {did_you_mean(name, system.tasks)}")


def _settings(checkpoint: Path, system: System) -> dict[str, Any]:
    """A checkpoint's settings, with the settings of its tasks as resolved for its format."""
    return {**read_settings(checkpoint / CONFIG), "tasks": system.config.model_dump()["tasks"]}


def _section(raw: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    place = raw
    for key in path:
        place = place[key]
    return place


def _rebuilt(system: System, raw: dict[str, Any], names: Mapping[str, str]) -> System:
    """Build a system of the tasks in ``raw`` with a fresh router. ``names`` maps new to old names of copied tasks."""
    config = read_system_config(raw)
    changed = reassemble(system, config, {new: system.tasks[names.get(new, new)] for new in config.tasks})
    for new, old in names.items():
        changed.model.bank[new].load_state_dict(system.model.bank[old].state_dict())
        changed.model.head(new).load_state_dict(system.model.head(old).state_dict())
    return changed


def _keep_routing(system: System, changed: System) -> None:
    changed.model.router, changed.model.ood = system.model.router, system.model.ood
    changed.model.memory = system.model.memory


def _forgetting(ood: OutOfDistribution, known: RouterMemory, adapter: int) -> OutOfDistribution:
    """Remove one task's inputs from the known ones: those whose nearest remembered input belongs to it."""
    if not len(ood.references):
        return ood
    nearest = torch.cdist(ood.references, ood.whiten(known.features)).argmin(dim=1)
    kept = ood.references[known.routes[nearest] != adapter]
    ood.references = kept if len(kept) else ood.references
    return ood


def _saved(system: System, metadata: Metadata, raw: dict[str, Any], names: Mapping[str, str], output: Path) -> Path:
    data = {
        key: {new: known[old] for new, old in names.items() if old in known}
        for key in ("dataset_sizes", "data_hashes", "data_revisions")
        for known in (getattr(metadata, key),)
    }
    changed = replace(metadata, tasks=list(names), format=type(metadata).format, **data)
    system.save(output, changed, dump_yaml(raw))
    return output
