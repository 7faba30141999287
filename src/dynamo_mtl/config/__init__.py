"""Defines the settings of all parts, each in its own file, and reads configuration files.

>>> from dynamo_mtl.config import load_config
>>> load_config("config.yaml", ["training.seed=1"]).training.seed  # doctest: +SKIP
1
"""

from dynamo_mtl.config.load import PLACES, AddedTask, DynamoConfig, extended_config, load_config

__all__ = ["PLACES", "AddedTask", "DynamoConfig", "extended_config", "load_config"]
