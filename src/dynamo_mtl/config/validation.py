"""Validates settings against their models, and reports everything that is wrong in one clear sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.messages import did_you_mean

Settings = TypeVar("Settings", bound=BaseModel)


def validate(model: type[Settings], raw: Any, where: str) -> Settings:
    """Validate settings. Raises one ``ConfigError`` that lists all problems: key, value, and what would be right."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(problem, model, where) for problem in error.errors())) from error


def _sentence(problem: Any, model: type[BaseModel], where: str) -> str:
    place = [str(part) for part in problem["loc"]]
    key = ".".join(place)
    if problem["type"] == "extra_forbidden":
        hint = ELSEWHERE.get(place[-1]) or did_you_mean(place[-1], _keys(model, place[:-1]))
        return f"{where}: unknown key '{key}'; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    found = problem["input"]
    shown = "" if isinstance(found, dict) else f", found {found!r:.80}"
    return f"{where}: {key}: {message[0].lower()}{message[1:]}{shown}"


ELSEWHERE = {
    "gradient_accumulation_steps": "training.batch_size counts the examples of an update, which training.token_budget "
    "splits into micro-batches",
    "per_device_train_batch_size": "training.batch_size counts the examples of an update over all devices",
    "learning_rate": "use training.lora_lr, training.head_lr and training.router_lr",
    "warmup_steps": "use training.warmup_ratio, a share of the updates",
    "lr_scheduler_type": "use training.lr_schedule",
    "num_train_epochs": "use training.num_epochs",
    "fp16": "use model.precision: fp16",
    "bf16": "use model.precision: bf16",
    "output_dir": "use checkpoint_dir and log_dir",
    "eval_steps": "use training.eval_every",
    "logging_steps": "use training.log_every",
    "save_steps": "use training.save_every",
    "save_total_limit": "use training.keep_states",
    "early_stopping_patience": "use training.patience",
}
"""Keys of other trainers, and their equivalents here."""


def _keys(model: type[BaseModel], place: Sequence[str]) -> list[str]:
    """Known keys of the section at ``place``, following nested models and mappings of models."""
    current: Any = model
    for part in place:
        fields = getattr(current, "model_fields", None)
        annotation = fields[part].annotation if fields and part in fields else None
        if annotation is None:
            continue  # a task's name inside a mapping: the model of the mapping's values stays
        inner = [annotation, *getattr(annotation, "__args__", ())]
        current = next((i for i in inner if isinstance(i, type) and issubclass(i, BaseModel)), current)
    return list(getattr(current, "model_fields", {}))
