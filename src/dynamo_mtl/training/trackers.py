"""Starts experiment trackers through Accelerate, and sends them routing pictures and sample answers."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

from dynamo_mtl.config.overrides import flat
from dynamo_mtl.config.training_config import PipelineConfig
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.figures import confusion_picture
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.metrics.routing import confusion_matrix
from dynamo_mtl.model.calibration import Calibration
from dynamo_mtl.tasks.tables import first_examples
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.metrics_log import MetricsLog
from dynamo_mtl.training.phases.phase_2_router import HeldOut

logger = logging.getLogger(__name__)

SAMPLES = 3
"""Validation inputs of each task whose answers are shown."""
COLUMNS = ["task", "input", "expected", "routed to", "answer"]


def find_trackers(names: Sequence[str]) -> list[Any]:
    """Return the names, if their packages are installed. Raises ``ConfigError`` with the command that installs one."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            what = "-e '.[track]'" if name == "wandb" else name
            raise ConfigError(f"trackers: the package {name} is not installed; install it with: pip install {what}")
    return list(names)


def start_trackers(config: PipelineConfig, accelerator: Accelerator) -> None:
    """Start a run in every tracker, with the flattened settings. A tracker that fails never stops the training."""
    if not config.chosen_trackers:
        return
    own = {"wandb": {"tags": config.wandb_tags, "dir": config.log_dir}}
    wanted, started = list(accelerator.log_with), []
    for tracker in wanted:
        accelerator.log_with, accelerator.trackers = [tracker], []
        try:
            accelerator.init_trackers(config.wandb_project, config=_plain(config), init_kwargs=own)
            started += accelerator.trackers
        except Exception as error:  # trackers are network clients, which raise anything
            logger.warning(
                "the tracker %s could not be started and is left out (%s: %s)", tracker, type(error).__name__, error
            )
    accelerator.log_with, accelerator.trackers = wanted, started


def _plain(config: PipelineConfig) -> dict[str, str | int | float | bool]:
    """Flatten the settings to one level of plain values, which every tracker accepts."""
    settings = flat(config.model_dump())
    return {
        key: value if isinstance(value, str | int | float | bool) else str(value)
        for key, value in settings.items()
        if value is not None
    }


def show_routing(
    log: MetricsLog, source: ExampleSource, held_out: HeldOut, calibration: Calibration, when: str
) -> None:
    """Send the trackers pictures of where validation inputs are routed, and the answers to some of them."""
    system = source.system
    system.model.eval()
    names = list(system.tasks)
    for kind, (features, routes) in held_out.items():
        with torch.no_grad():
            chosen = system.model.router(features).weights.argmax(dim=1).tolist()
        picture = confusion_picture(confusion_matrix(chosen, routes.tolist(), len(names)), names, f"{kind} inputs")
        log.show(replace(picture, name=f"{when} routing {kind}"))
    predictor = Predictor(system, calibration)
    rows: list[list[str]] = []
    for task in names:
        required = system.config.tasks[task].requires_instruction
        wording = system.tasks[task].validation_instructions[0] if required else None
        for example in first_examples(source.tables[task].validation, SAMPLES):
            made = predictor.predict([TextInput(example.text, example.context, wording, example.choices)])[0]
            rows.append([task, example.text, example.target, made.task, str(made.answer)])
    log.table(f"{when} answers", COLUMNS, rows)
