"""Changes settings by dotted keys such as ``training.seed``, for the command line, searches and comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.strict_yaml import parse_yaml

Config = TypeVar("Config", bound=BaseModel)


def set_value(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set ``section.key`` in nested settings, in place; sections that are missing are made.

    Raises:
        ConfigError: a section of the key is a value.
    """
    *sections, last = key.split(".")
    place = settings
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"'{key}': {section} is a value, not a section")
        place = inner
    place[last] = value


def apply_overrides(settings: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set ``key.sub=value`` in nested settings, in place; values are YAML. Raises ``ConfigError``."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{override}': expected key.sub=value")
        parsed = parse_yaml(value, f"'{override}'")
        # On a command line, " #" begins no comment.
        is_text = isinstance(parsed, str) and " #" in value and value[:1] not in "'\""
        set_value(settings, key, value.strip() if is_text else parsed)


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return a copy of a configuration with ``{"section.key": value}`` changed, and validate it again."""
    raw = config.model_dump()
    for key, value in settings.items():
        set_value(raw, key, value)
    return type(config).model_validate(raw)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` → ``{"a.b": 1}``."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found
