"""The one configuration: all settings of all parts, composed from the models beside what they configure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamo_mtl.config.comparison_config import CompareConfig
from dynamo_mtl.config.overrides import apply_overrides
from dynamo_mtl.config.serving_config import ServingConfig
from dynamo_mtl.config.training_config import PipelineConfig
from dynamo_mtl.config.validation import validate
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.storage import at_home
from dynamo_mtl.strict_yaml import read_settings


class DynamoConfig(PipelineConfig):
    """Everything that a configuration file can say."""

    compare: CompareConfig = CompareConfig()
    serving: ServingConfig = ServingConfig()
    visualization_dir: str = "./visualizations"
    """Where ``dynamo evaluate``, ``compare`` and ``analyze`` draw pictures and write their page."""


PLACES = (
    "visualization_dir=./visualizations",
    "log_dir=./logs",
    "checkpoint_dir=./checkpoints",
    "data.cache_dir=null",
    "serving={}",
)
"""Overrides for a checkpoint's own configuration: a file from somebody else does not choose where files are written,
nor who can ask."""


BRANCH = 64
"""Hidden size of the router's branch of an added task."""
FEW_SHOT_TRAINING = {"max_steps": 60, "num_epochs": 60, "batch_size": 16, "load_best_model_at_end": False}
"""Phase 1 of a task with a handful of examples, which are hardly enough to choose a best state by."""

EXTENDS = "extends"
"""Names the configuration file, beside this one, whose settings hold where this one says nothing."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> DynamoConfig:
    """Read and validate a configuration file, on top of what it extends, with ``key.sub=value`` overrides.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type or contradictory values.
    """
    settings = _read_extended(Path(path), ())
    apply_overrides(settings, overrides)
    return validate(DynamoConfig, settings, str(path))


def _read_extended(path: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    settings = read_settings(path)
    if EXTENDS not in settings:
        return settings
    base = settings.pop(EXTENDS)
    if not isinstance(base, str):
        raise ConfigError(f"{path}: {EXTENDS}: expected the path of another configuration file, found {base!r:.80}")
    files = (*extended_by, path.resolve())
    if (path.parent / base).resolve() in files:
        raise ConfigError(f"{path}: {EXTENDS}: {base} is this file or extends it; name one that does not")
    return _merged(_read_extended(path.parent / base, files), settings)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on ``base``: sections key by key, everything else as a whole."""
    both = {
        key: _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in over.items()
    }
    return {**base, **both}


@dataclass(frozen=True)
class AddedTask:
    """A task that is to be added to a trained model."""

    name: str
    type: str
    data: str
    """A path, a hub id, or ``sample``."""
    few_shot: bool = False
    """Whether there are only some 16 examples: the router gets a prototype of them instead of a trained branch."""
    lora: Mapping[str, Any] | None = None
    """Settings of its adapter; those of its type if None."""


def extended_config(path: Path, added: AddedTask, overrides: Sequence[str] = ()) -> DynamoConfig:
    """A checkpoint's configuration with one task more, its last one.

    Args:
        path: the checkpoint's ``config.yaml``.
        added: the task.
        overrides: of any setting, such as ``tasks.NAME.training.max_steps=500``.

    Raises:
        ConfigError: a task of that name is there already, or unusable settings.
    """
    settings = read_settings(path)
    tasks, data = settings["tasks"], settings["data"]
    if added.name in tasks:
        raise ConfigError(f"--name: the model has a task '{added.name}' already; choose another name")
    few = {"training": FEW_SHOT_TRAINING} if added.few_shot else {}
    tasks[added.name] = {"type": added.type, **few}
    local = at_home(added.data)
    data["paths"][added.name] = str(local.resolve()) if local.exists() else added.data
    if added.lora is not None:
        settings["lora_configs"][added.name] = dict(added.lora)
    settings["router"].setdefault("branches", []).append(0 if added.few_shot else BRANCH)
    apply_overrides(settings, [*PLACES, *overrides])
    return validate(DynamoConfig, settings, str(path))
