"""Loads the configuration, which is composed of the settings of all parts, each defined beside what it configures."""

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
    """All settings that a configuration file can have."""

    compare: CompareConfig = CompareConfig()
    serving: ServingConfig = ServingConfig()
    visualization_dir: str = "./visualizations"
    """Folder for the pictures and pages of ``dynamo evaluate``, ``compare`` and ``analyze``."""


PLACES = (
    "visualization_dir=./visualizations",
    "log_dir=./logs",
    "checkpoint_dir=./checkpoints",
    "data.cache_dir=null",
    "serving={}",
)
"""Overrides for the configuration stored in a checkpoint. A checkpoint from somebody else must not choose where files
are written, or who may send requests."""


BRANCH = 64
"""Hidden size of the router's branch of an added task."""
FEW_SHOT_TRAINING = {"max_steps": 60, "num_epochs": 60, "batch_size": 16, "load_best_model_at_end": False}
"""Phase 1 settings of a task with only a handful of examples, too few to choose a best state by."""

EXTENDS = "extends"
"""Key that names another configuration file, relative to this one. Its settings apply where this file sets none."""


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
    """Whether there are only about 16 examples. The router then gets a prototype of them, not a trained branch."""
    lora: Mapping[str, Any] | None = None
    """Settings of its adapter; the defaults of its task type if None."""


def extended_config(path: Path, added: AddedTask, overrides: Sequence[str] = ()) -> DynamoConfig:
    """Return a checkpoint's configuration with a task added as the last one.

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
    if settings["router"].get("branch_adapters"):
        settings["router"]["branch_adapters"].append(None)
    # A handful of examples would be outnumbered by general texts.
    few_shot = ["training.router.general_texts=0"] if added.few_shot else []
    apply_overrides(settings, [*PLACES, *few_shot, *overrides])
    return validate(DynamoConfig, settings, str(path))
