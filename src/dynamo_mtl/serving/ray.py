"""Run the web application on a Ray cluster. Ray Serve provides replicas, autoscaling and back-pressure.

serve run dynamo_mtl.serving.ray:application checkpoint=PATH num_replicas=2
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from dynamo_mtl.checkpoint.folder import CONFIG
from dynamo_mtl.checkpoint.metadata import read_metadata
from dynamo_mtl.config import PLACES, DynamoConfig, load_config
from dynamo_mtl.config.validation import validate
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.messages import did_you_mean
from dynamo_mtl.serving.app import make_app
from dynamo_mtl.serving.handlers import Server
from dynamo_mtl.serving.security import KEY_VARIABLE, check_key


class Arguments(BaseModel):
    """Deployment arguments. A name with a dot in it is a setting of the checkpoint, such as ``serving.max_items``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    checkpoint: Path
    """A folder that every node can read."""
    num_replicas: int | Literal["auto"] = 1
    """Processes that answer; ``auto`` lets Ray choose by load."""
    max_ongoing_requests: int = Field(default=64, ge=1)
    """Requests that one replica works on; Ray keeps further ones waiting."""
    max_queued_requests: int = Field(default=256, ge=-1)
    """Requests that wait; beyond them Ray answers 503. No limit if -1."""
    num_cpus: float = Field(default=1.0, ge=0)
    """Cores of a replica; its forward pass has as many threads."""
    num_gpus: float = Field(default=0.0, ge=0)
    insecure: bool = False
    """Serve without a key. Ray decides where it listens, so this code cannot check who can reach it."""


class Replica:
    """One process of the deployment."""

    def __init__(self, checkpoint: Path, config: DynamoConfig, device: str) -> None:
        if config.serving.num_threads is not None:
            torch.set_num_threads(config.serving.num_threads)
        self.server = Server(DynamoInference(checkpoint, config, device), config.serving)
        self.server.model.route("warm up")
        self.server.engine.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray, after the constructor."""
        return make_app(self.server, os.environ.get(KEY_VARIABLE) or None)

    def check_health(self) -> None:
        """Called by Ray, which replaces a replica that raises.

        Raises:
            RuntimeError: the engine died.
        """
        if not self.server.engine.is_alive:
            raise RuntimeError("the engine died")

    def __del__(self) -> None:
        """Called by Ray once every accepted request has been answered, or if the constructor has failed."""
        if hasattr(self, "server"):
            self.server.engine.stop(0.0)


def application(arguments: dict[str, Any]) -> serve.Application:
    """The deployment of a checkpoint, for ``serve run``, ``serve deploy`` and ``ray.serve.run``.

    Args:
        arguments: see ``Arguments``. The key is read from ``DYNAMO_API_KEY`` where this is called, and handed to the
            replicas.

    Raises:
        ConfigError: an argument is unknown or wrong, or there is no key.
        CheckpointError: there is no checkpoint.
    """
    asked, overrides = _read(arguments)
    key = os.environ.get(KEY_VARIABLE) or None
    check_key(key)
    if key is None and not asked.insecure:
        raise ConfigError(f"set {KEY_VARIABLE}, or give insecure=true to let everyone ask whom Ray lets in")
    read_metadata(asked.checkpoint)
    if any(name.startswith("serving.reload=") for name in overrides):
        raise ConfigError("serving.reload: a request reaches one replica alone; deploy again to replace the model")
    config = load_config(asked.checkpoint / CONFIG, [*PLACES, *overrides])
    deployment = serve.deployment(
        name="Dynamo",
        num_replicas=asked.num_replicas,
        max_ongoing_requests=asked.max_ongoing_requests,
        max_queued_requests=asked.max_queued_requests,
        graceful_shutdown_timeout_s=config.serving.drain_seconds,
        health_check_period_s=2.0,
        ray_actor_options={
            "num_cpus": asked.num_cpus,
            "num_gpus": asked.num_gpus,
            "runtime_env": {"env_vars": {KEY_VARIABLE: key or ""}},
        },
    )(serve.ingress()(Replica))
    return deployment.bind(asked.checkpoint.absolute(), config, "cuda" if asked.num_gpus else "cpu")


def _read(arguments: dict[str, Any]) -> tuple[Arguments, list[str]]:
    """The arguments, and the settings among them as overrides."""
    asked = validate(Arguments, arguments, "arguments")
    settings = asked.model_extra or {}
    unknown = [name for name in settings if "." not in name]
    if unknown:
        raise ConfigError(
            f"arguments: {unknown[0]}: no such argument; {did_you_mean(unknown[0], Arguments.model_fields)}"
        )
    return asked, [f"{name}={value}" for name, value in settings.items()]
