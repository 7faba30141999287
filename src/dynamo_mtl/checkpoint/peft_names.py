"""Finds the layers that a PEFT configuration adapts, by matching names, patterns and indices as PEFT does."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import regex

from dynamo_mtl.errors import CheckpointError

LONGEST_MATCH = 0.2
"""Time limit in seconds to match an untrusted pattern against one name."""


def is_targeted(path: Path, settings: Mapping[str, Any], name: str) -> bool:
    """Whether PEFT adapts a module, as its ``check_target_module_exists`` says; ``all-linear`` is all linear layers."""
    excluded = settings.get("exclude_modules") or []
    if isinstance(excluded, str):
        if _match(path, "exclude_modules", excluded, name, whole=True):
            return False
    elif _ends_with(name, _strings(path, "exclude_modules", excluded)):
        return False
    for module in _strings(path, "modules_to_save", settings.get("modules_to_save") or []):
        if _match(path, "modules_to_save", rf"(^|.*\.){module}($|\..*)", name):
            return False
    targets = settings.get("target_modules")
    if isinstance(targets, str):
        return targets.lower() == "all-linear" or bool(_match(path, "target_modules", targets, name, whole=True))
    targets = _strings(path, "target_modules", targets)
    # PEFT checks the layer's index only if the full name is not listed.
    return name in targets or (_ends_with(name, targets) and _is_layer_chosen(path, settings, name))


def _is_layer_chosen(path: Path, settings: Mapping[str, Any], name: str) -> bool:
    chosen = settings.get("layers_to_transform")
    if chosen is None or chosen == []:
        return True
    layers = chosen if isinstance(chosen, list) else [chosen]
    if not all(isinstance(layer, int) for layer in layers):
        raise CheckpointError(f"{path}: layers_to_transform should be numbers of layers, found {chosen!r:.60}")
    given = settings.get("layers_pattern") or []
    patterns = _strings(path, "layers_pattern", [given] if isinstance(given, str) else given)
    # Without a pattern, the first number that follows a name counts; with several, the first pattern that matches.
    ways = [rf"(?:^|.*?\.){own}\.(?P<idx>\d+)\." for own in patterns] or [r".*?\.[^.]*\.(?P<idx>\d+)\."]
    found = next((match for way in ways if (match := _match(path, "layers_pattern", way, name))), None)
    number = found.groupdict().get("idx") if found else None
    return number is not None and int(number) in layers


def _ends_with(name: str, suffixes: Collection[str]) -> bool:
    return name in suffixes or name.endswith(tuple(f".{suffix}" for suffix in suffixes))


def _strings(path: Path, key: str, given: Any) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(entry, str) for entry in given):
        raise CheckpointError(f"{path}: {key} should be names of modules, found {given!r:.60}")
    return given


def read_patterns(path: Path, settings: Mapping[str, Any], key: str) -> dict[str, float]:
    """``rank_pattern`` or ``alpha_pattern``."""
    given = settings.get(key) or {}
    if not isinstance(given, dict) or not all(map(is_number, given.values())):
        raise CheckpointError(f"{path}: {key} should hold patterns and numbers")
    return given


def pattern_values(path: Path, key: str, patterns: Mapping[str, float], name: str) -> list[float]:
    """The values of the patterns that a module's name ends with, as ``get_pattern_key`` of PEFT matches them."""
    return [own for pattern, own in patterns.items() if _match(path, key, rf"(.*\.)?({pattern})$", name)]


def _match(path: Path, key: str, pattern: str, name: str, whole: bool = False) -> regex.Match[str] | None:
    """``re.match`` (or ``re.fullmatch``) with a time limit, because an untrusted pattern could take forever."""
    reason = "is no plain pattern of a module's path"
    # Refuse what ``regex``, which has a time limit, reads differently from ``re``, which PEFT uses.
    if len(pattern) < 2000 and re.fullmatch(r"(?:\{\d|[^{[]|\[(?!\^?[\[:]))*", pattern):
        try:
            re.compile(pattern)
            find = regex.fullmatch if whole else regex.match
            return find(pattern, name, timeout=LONGEST_MATCH)
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            reason = f"is no pattern ({error})"
        except TimeoutError:
            reason = "takes too long to match"
    raise CheckpointError(f"{path}: {key} holds {pattern!r:.80}, which {reason}")


def is_number(value: Any) -> bool:
    """Whether a setting is a finite number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
