"""Reading and writing YAML settings strictly.

YAML 1.1 has surprises that cost users hours: ``3e-4`` is text, ``on`` is true, ``010`` is 8, a repeated key silently
wins. The loader here reads numbers, booleans and null as YAML 1.2 does and refuses repeated keys.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from dynamo_mtl.errors import ConfigError


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.2 scalars, no repeated keys, no aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith(":str"):
                raise yaml.constructor.ConstructorError(None, None, "a key should be text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key.value}' is repeated", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# A table of its own: the one that is inherited reads numbers and booleans as YAML 1.1 does.
setattr(_StrictLoader, "yaml_implicit_resolvers", {})  # noqa: B010 (the library's stubs declare it on instances)
for _tag, _pattern, _first in (
    ("bool", r"true|True|false|False", "tTfF"),
    ("null", r"~|null|Null|", "~nN\0"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
):
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _construct_decimal(loader: _StrictLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _construct_decimal)


class _PlainDumper(yaml.SafeDumper):
    """Writes values that occur twice twice, and quotes text that ``_StrictLoader`` would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# Those of YAML 1.1 stay too, for other readers.
_resolvers = {first: list(own) for first, own in yaml.SafeDumper.yaml_implicit_resolvers.items()}
for _first_sign, _own in _StrictLoader.yaml_implicit_resolvers.items():
    _resolvers.setdefault(_first_sign, []).extend(_own)
setattr(_PlainDumper, "yaml_implicit_resolvers", _resolvers)  # noqa: B010 (as above)


def dump_yaml(settings: Any, on_one_line: bool = False) -> str:
    """Settings as YAML that ``parse_yaml`` reads back as the same."""
    flow, width = (True, 10_000) if on_one_line else (False, None)
    return yaml.dump(
        settings, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=width
    )


def parse_yaml(text: str, name: str) -> Any:
    """Parse one YAML document. Raises ``ConfigError`` with ``name``, line and column."""
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{name}{place}: {error.problem}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested too deeply") from error
    except (KeyError, AttributeError) as error:  # what the library's own constructors stumble over
        raise ConfigError(f"{name}: a value is not of the kind that its YAML tag says; leave the !! tag out") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split())}") from error


def read_settings(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises ``ConfigError`` with file, line and column."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    settings = parse_yaml(text, str(path)) or {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(settings).__name__}")
    return settings
