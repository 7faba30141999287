"""The one configuration: all settings of all parts, composed from the models beside what they configure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dynamo_mtl.evaluation.compare import CompareConfig
from dynamo_mtl.settings import read_settings, validate
from dynamo_mtl.training.settings import PipelineConfig


class DynamoConfig(PipelineConfig):
    """Everything that a configuration file can say."""

    compare: CompareConfig = CompareConfig()
    visualization_dir: str = "./visualizations"
    """Where ``dynamo evaluate`` draws its picture."""


PLACES = ("visualization_dir=./visualizations", "data.cache_dir=null")
"""Overrides for a checkpoint's own configuration: a file from somebody else does not choose where files are written."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> DynamoConfig:
    """Read and validate a configuration file with ``key.sub=value`` overrides.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type or contradictory values.
    """
    return validate(DynamoConfig, read_settings(Path(path), overrides), str(path))
