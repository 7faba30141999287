"""Reads and writes YAML settings strictly, by YAML 1.2.

YAML 1.1 has surprises that cost users hours: ``3e-4`` is text, ``on`` is true, ``010`` is 8, a repeated key silently
wins. ``ruamel.yaml`` reads version 1.2 and refuses repeated keys. This module also refuses aliases and keys that are
not text, and reads dates as text.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import MappingNode, ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from dynamo_mtl.errors import ConfigError


class _StrictComposer(Composer):
    """Refuses keys that are not text, and aliases, with which a few lines could become gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.parser.check_event(AliasEvent):
            raise ComposerError(None, None, "aliases are not allowed", self.parser.peek_event().start_mark)
        node = super().compose_node(parent, index)
        for key, _ in node.value if isinstance(node, MappingNode) else ():
            if not isinstance(key, ScalarNode) or not str(key.tag).endswith(":str"):
                raise ComposerError(None, None, "a key should be text", key.start_mark)
        return node


class _StrictConstructor(SafeConstructor):
    """Reads dates as text."""


_StrictConstructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


class _PortableRepresenter(SafeRepresenter):
    """Writes YAML that version 1.1 reads the same way: its words for true and false in quotes, and ``1.0e-05``."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # values that occur twice are written twice

    def represent_text(self, text: str) -> ScalarNode:
        style = "'" if text.lower() in ("y", "n", "yes", "no", "on", "off") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    def represent_number(self, number: float) -> ScalarNode:
        node = self.represent_float(number)
        mantissa, exponent, power = node.value.partition("e")
        if exponent and "." not in mantissa:
            node.value = f"{mantissa}.0e{power}"
        return node


_PortableRepresenter.add_representer(str, _PortableRepresenter.represent_text)
_PortableRepresenter.add_representer(float, _PortableRepresenter.represent_number)


def dump_yaml(settings: Any, on_one_line: bool = False) -> str:
    """Settings as YAML that ``parse_yaml`` reads back as the same."""
    writer = YAML(typ="safe", pure=True)
    writer.Representer = _PortableRepresenter
    writer.default_flow_style = on_one_line
    writer.width = 10_000 if on_one_line else 120
    writer.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue] (of any type there)
    text = io.StringIO()
    writer.dump(settings, text)
    return text.getvalue()


def parse_yaml(text: str, name: str) -> Any:
    """Parse one YAML document. Raises ``ConfigError`` with ``name``, line and column."""
    reader = YAML(typ="safe", pure=True)
    reader.Composer, reader.Constructor = _StrictComposer, _StrictConstructor
    try:
        return reader.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = str(error.problem).split("\n", maxsplit=1)[0]
        raise ConfigError(f"{name}{place}: {problem}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested too deeply") from error
    except (KeyError, AttributeError, TypeError) as error:  # what the library's own constructors stumble over
        raise ConfigError(f"{name}: a value is not of the kind that its YAML tag says; leave the !! tag out") from error
    except (YAMLError, ValueError) as error:
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
