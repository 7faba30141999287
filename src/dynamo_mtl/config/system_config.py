"""The part of a configuration that a trained model depends on: its data, tasks, adapters and router."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_validator

from dynamo_mtl.config.validation import validate
from dynamo_mtl.data.data_config import DATA_PATH, DataConfig
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.messages import did_you_mean
from dynamo_mtl.model.adapter import LoraConfig
from dynamo_mtl.model.model_config import ModelConfig
from dynamo_mtl.model.router import RouterConfig
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.tasks.registry import ALIASES, task_type, task_types
from dynamo_mtl.tasks.task_config import TaskConfig

logger = logging.getLogger(__name__)

ROUTING_INFO = "routing_info"
"""Key in every answer, next to the task's own key; so no task can have this name."""


class SystemConfig(BaseModel):
    """Everything a trained model depends on. Its tasks are those with a data path or an entry under ``tasks``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    data: DataConfig = DataConfig()
    tasks: dict[str, SerializeAsAny[TaskConfig]] = Field(default_factory=dict)
    """Settings of each task, by the task's name. Its type decides which settings it has."""
    model: ModelConfig = ModelConfig()
    lora_configs: dict[str, LoraConfig] = Field(default_factory=dict)
    """Adapter of each task, by the task's name. Settings that are not given have the defaults of the task's type."""
    router: RouterConfig = RouterConfig()

    @model_validator(mode="before")
    @classmethod
    def _resolve_tasks(cls, raw: Any) -> Any:
        """Give every named task the settings class of its type, and its type's adapter where none is configured."""
        if not isinstance(raw, dict):
            return raw
        named = raw.get("tasks") or {}
        data = raw.get("data") or {}
        if not isinstance(named, dict) or not isinstance(data, dict) or not isinstance(data.get("paths", {}), dict):
            return raw
        paths = {
            **(data.get("paths") or {}),
            **{k.removesuffix(DATA_PATH): v for k, v in data.items() if k.endswith(DATA_PATH)},
        }
        tasks: dict[str, TaskConfig] = {}
        # If all tasks are named, as in a saved model, their order is kept; otherwise the data paths give the order.
        for name in named if paths.keys() <= named.keys() else dict.fromkeys([*paths, *named]):
            settings = named.get(name) or {}
            if not isinstance(settings, dict | TaskConfig):
                raise ConfigError(f"tasks.{name}: expected keys and values, found {settings!r:.80}")
            if isinstance(settings, TaskConfig):
                tasks[name] = settings
                continue
            kind = settings.get("type", name)
            if not isinstance(kind, str):
                raise ConfigError(f"tasks.{name}.type: expected the name of a task type, found {kind!r:.80}")
            if "type" not in settings and name not in (*task_types(), *ALIASES):
                known = {*task_types(), *named}
                raise ConfigError(f"data.{name}{DATA_PATH}: no task '{name}'; {did_you_mean(name, known)}")
            task = task_type(kind, f"tasks.{name}.type")
            tasks[name] = validate(task.Config, {**settings, "type": task.type}, f"tasks.{name}")
        loras = raw.get("lora_configs") or {}
        for name, settings in loras.items() if isinstance(loras, dict) else [("", loras)]:
            if not isinstance(settings, dict | LoraConfig | None):
                raise ConfigError(f"lora_configs{name and '.'}{name}: expected keys and values, found {settings!r:.80}")
        unknown = [name for name in loras if name not in tasks]
        if unknown:
            raise ConfigError(f"lora_configs.{unknown[0]}: no such task; {did_you_mean(unknown[0], tasks)}")
        adapters = {n: {**task_types()[t.type].lora.model_dump(), **_plain(loras.get(n))} for n, t in tasks.items()}
        return {**raw, "tasks": tasks, "lora_configs": adapters}

    @model_validator(mode="after")
    def _consistent(self) -> SystemConfig:
        if not self.tasks:
            raise ConfigError("data: no task is configured; give at least one <task>_data_path, for example sample")
        for name in self.tasks:
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
                raise ConfigError(f"tasks: the name {name!r} should have 1 to 64 letters, digits, _ or -")
            if name == ROUTING_INFO:
                raise ConfigError(f"tasks: the name '{name}' is a key of answers; choose another one")
        if self.router.top_k > len(self.tasks):
            raise ConfigError(f"router.top_k: found {self.router.top_k}, but there are only {len(self.tasks)} tasks")
        if self.router.added >= len(self.tasks):
            raise ConfigError(
                f"router.branches: found {self.router.added} for {len(self.tasks)} tasks; only those that were "
                "added later have one"
            )
        if self.data.window_overlap * 2 > self.data.max_source_length:
            raise ConfigError(
                f"data.window_overlap: found {self.data.window_overlap}, at most half of data.max_source_length "
                f"({self.data.max_source_length}) is possible"
            )
        return self

    def to_yaml(self) -> str:
        """The resolved settings as YAML that reads back as the same."""
        return dump_yaml(self.model_dump())


def _plain(settings: Any) -> Mapping[str, Any]:
    return settings.model_dump() if isinstance(settings, LoraConfig) else settings or {}
