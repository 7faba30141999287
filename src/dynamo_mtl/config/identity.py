"""Tells which settings decide what is trained, so that runs, trials and result files can be compared."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from pydantic import ValidationError

from dynamo_mtl.config.overrides import flat, set_value
from dynamo_mtl.config.training_config import PipelineConfig
from dynamo_mtl.errors import ConfigError

logger = logging.getLogger(__name__)

FREE = (
    "log_dir", "checkpoint_dir", "visualization_dir", "use_wandb", "wandb_project", "wandb_tags", "trackers",
    "data.cache_dir", "data.num_workers", "training.num_threads", "training.save_every",
    "training.keep_states", "training.token_budget",
    "compare", "serving", "tasks.*.shift_files",
)  # fmt: skip
"""Settings that a resumed run may change. They do not affect what is trained: the token budget and the number of
threads change only how sums are rounded."""


def deciding_settings(config: PipelineConfig) -> str:
    """The settings that decide what is trained, as one text."""
    return json.dumps([[key, value] for key, value in sorted(_deciding(config).items())])


def changed_setting(then: Mapping[str, Any], now: PipelineConfig) -> tuple[str, Any, Any] | None:
    """Return the first setting that makes two runs train differently, with both values; None if there is none.

    A setting that did not exist ``then`` counts as having its current default.
    """
    try:
        then = type(now).model_validate(then).model_dump()
    except (ConfigError, ValidationError):
        logger.debug("saved settings that are no longer valid are compared as they are")
    old, new = flat(then), flat(now.model_dump())
    for key in sorted(old.keys() | new.keys()):
        if not _is_free(key) and old.get(key) != new.get(key):
            return key, old.get(key), new.get(key)
    return None


def _is_free(key: str) -> bool:
    return any(fnmatchcase(key, name) or fnmatchcase(key, f"{name}.*") for name in FREE)


def settings_of(config: PipelineConfig) -> dict[str, Any]:
    """The deciding settings, nested, without the folder of the data, which is another one on each machine."""
    settings: dict[str, Any] = {}
    for key, value in _deciding(config).items():
        if key != "data.root":
            set_value(settings, key, value)
    return settings


def _deciding(config: PipelineConfig) -> dict[str, Any]:
    return {key: value for key, value in flat(config.model_dump(mode="json")).items() if not _is_free(key)}
