"""Reads the settings that a checkpoint was trained with, and applies what a configuration file may change."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dynamo_mtl.checkpoint.folder import CONFIG
from dynamo_mtl.checkpoint.metadata import read_metadata
from dynamo_mtl.config.system_config import SystemConfig
from dynamo_mtl.config.validation import validate
from dynamo_mtl.messages import shortened
from dynamo_mtl.strict_yaml import read_settings

logger = logging.getLogger(__name__)


def read_system_config(place: Path | Mapping[str, Any]) -> SystemConfig:
    """Read the part of a configuration, or of its file, that a trained model depends on. Other sections are ignored."""
    raw = read_settings(place) if isinstance(place, Path) else place
    where = str(place) if isinstance(place, Path) else CONFIG
    return validate(SystemConfig, {k: v for k, v in raw.items() if k in SystemConfig.model_fields}, where)


CHANGEABLE = (
    "model.precision", "model.quantization", "router.top_k", "router.on_rejection", "data.max_source_length",
    "data.window_overlap", "data.max_windows", "tasks.*.generation", "tasks.*.max_answer_tokens",
    "tasks.*.top_labels", "tasks.*.thresholds",
)  # fmt: skip
"""Settings of a trained model that a configuration file may change. All others come from the checkpoint."""


def used_with(checkpoint: Path, path: Path) -> SystemConfig:
    """Return a checkpoint's settings with the changes that a configuration file may make.

    Differences in other settings of the model, router and adapters are ignored with a warning.

    Raises:
        CheckpointError: not a checkpoint.
        ConfigError: unusable settings.
    """
    read_metadata(checkpoint)
    own, given = read_settings(checkpoint / CONFIG), read_settings(path)
    different: list[str] = []

    def overlay(place: dict[str, Any], over: Mapping[str, Any], prefix: str) -> None:
        for name, value in over.items():
            key = f"{prefix}{name}"
            if isinstance(value, Mapping) and isinstance(place.get(name), dict):
                overlay(place[name], value, f"{key}.")
            elif any(fnmatch(key, pattern) or fnmatch(key, f"{pattern}.*") for pattern in CHANGEABLE):
                place[name] = value
            elif key.startswith(("model.", "router.", "lora_configs.")) and name in place and place[name] != value:
                different.append(key)

    overlay(own, {key: given[key] for key in SystemConfig.model_fields if isinstance(given.get(key), Mapping)}, "")
    if different:
        logger.warning(
            "%s: differs from what %s was trained with, whose own settings count: %s",
            path, checkpoint, shortened(different, 6),
        )  # fmt: skip
    return read_system_config(own)
