"""The three phases in order, with a checkpoint after each."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from pydantic import Field

from dynamo_mtl.errors import CheckpointError, ConfigError, writable_folder
from dynamo_mtl.inference.system import System, SystemConfig, build_system, load_system, make_tasks
from dynamo_mtl.model.checkpoint import METADATA, Metadata
from dynamo_mtl.tasks.tables import TRAIN, check_splits, open_task_table
from dynamo_mtl.tasks.task import Task
from dynamo_mtl.training.examples import ExampleSource, TaskTables
from dynamo_mtl.training.loop import run_phase
from dynamo_mtl.training.objective import Objective
from dynamo_mtl.training.phases.phase_1_adapters import AdapterPhase
from dynamo_mtl.training.phases.phase_2_router import FeaturePhase, MixturePhase, validation_features
from dynamo_mtl.training.phases.phase_3_joint import JointPhase
from dynamo_mtl.training.settings import TrainingConfig
from dynamo_mtl.training.tracking import MetricsLog

logger = logging.getLogger(__name__)

FOLDERS = {1: "phase_1", 2: "phase_2", 3: "final_model"}
"""Checkpoint folder of each phase."""


class PipelineConfig(SystemConfig):
    """A system and how it is trained."""

    training: TrainingConfig = TrainingConfig()
    log_dir: str = "./logs"
    checkpoint_dir: str = "./checkpoints"
    use_wandb: bool = False
    wandb_project: str = "dynamo"
    wandb_tags: list[str] = Field(default_factory=list)


def load_tables(config: PipelineConfig, tasks: dict[str, Task]) -> dict[str, TaskTables]:
    """Open and validate the training and validation data of all tasks."""
    seed = config.training.seed
    for task in tasks.values():
        check_splits(task, config.data)
    return {
        name: TaskTables(
            open_task_table(task, TRAIN, config.data, seed), open_task_table(task, "validation", config.data, seed)
        )
        for name, task in tasks.items()
    }


def train(config: PipelineConfig, phases: Iterable[int]) -> Path:
    """Run phases in order; each starts from the checkpoint of the one before.

    Returns:
        The folder of the last checkpoint.

    Raises:
        DynamoError: bad configuration, data or backbone, or the checkpoint of an earlier phase is missing; before any
            training starts.
    """
    chosen = sorted(set(phases))
    folder = Path(config.checkpoint_dir)
    Objective(config.training)
    before = folder / FOLDERS[chosen[0] - 1] if chosen[0] > 1 else None
    if before is not None and not (before / METADATA).is_file():
        raise CheckpointError(
            f"{before}: phase {chosen[0]} starts from phase {chosen[0] - 1}, which has not been trained; "
            f"run --phase {chosen[0] - 1} first, or --phase all"
        )
    accelerator = _accelerator(config)
    set_seed(config.training.seed)
    tables = load_tables(config, make_tasks(config))
    system, metadata = _start(config, tables, before, accelerator.device)
    source = ExampleSource(system, tables)
    writable_folder(folder, "checkpoint_dir")
    log = MetricsLog(Path(config.log_dir), accelerator)
    _start_trackers(config, accelerator)
    if config.training.compile:
        for layer in system.model.encoder.layers:
            layer.compile()
    last = folder
    try:
        for phase in chosen:
            began = time.perf_counter()
            _run(phase, source, config, accelerator, log)
            seconds = metadata.train_seconds + time.perf_counter() - began
            metadata = replace(metadata, phase=FOLDERS[phase], train_seconds=round(seconds, 1))
            last = folder / FOLDERS[phase]
            system.save(last, metadata, config.to_yaml())
            logger.info("saved %s", last)
    finally:
        log.close()
    return last


def _run(phase: int, source: ExampleSource, config: PipelineConfig, accelerator: Accelerator, log: MetricsLog) -> None:
    workers, settings = config.data.num_workers, config.training
    if phase == 1:
        for task in source.system.tasks:
            run_phase(AdapterPhase(source, task, settings), source.system, settings, workers, accelerator, log)
    elif phase == 2:
        held_out = validation_features(source, settings)
        if settings.routing_weight:  # without the known task, there is nothing to learn from features alone
            run_phase(FeaturePhase(source, settings, held_out), source.system, settings, 0, accelerator, log)
        if settings.router.mixture_steps:
            run_phase(MixturePhase(source, settings, held_out), source.system, settings, workers, accelerator, log)
    else:
        run_phase(JointPhase(source, settings), source.system, settings, workers, accelerator, log)


def _start(
    config: PipelineConfig, tables: dict[str, TaskTables], before: Path | None, device: torch.device
) -> tuple[System, Metadata]:
    """A fresh system, or that of an earlier phase; phase 1 trains no router, so that phase 2 starts a fresh one."""

    def targets(task: Task) -> Iterable[str]:
        return tables[task.name].train["target"]

    seconds = 0.0
    if before is None:
        system = build_system(config, targets, device)
    else:
        system, earlier = load_system(before, device, config, with_router=before.name != FOLDERS[1])
        seconds = earlier.train_seconds
    metadata = Metadata(
        tasks=list(system.tasks),
        backbone=system.backbone.name,
        weight_hash=system.backbone.weight_hash,
        tap_layer=system.model.tap_layer,
        phase="",
        seed=config.training.seed,
        train_seconds=seconds,
        commit=source_revision(),
        dataset_sizes={name: len(t.train) for name, t in tables.items()},
        device=device.type,
    )
    return system, metadata


def source_revision() -> str | None:
    """The git commit of the running source tree, ``-dirty`` if it has uncommitted changes; None outside of git."""
    place = Path(__file__).parent
    try:
        # A package installed into another project's folder is not of that project's revision.
        subprocess.run(["git", "ls-files", "--error-unmatch", __file__], cwd=place, capture_output=True, check=True)
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=place, capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=place,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")


def _accelerator(config: PipelineConfig) -> Accelerator:
    precision = "fp16" if config.model.precision == "fp16" else "no"
    try:
        accelerator = Accelerator(mixed_precision=precision, log_with="wandb" if config.use_wandb else None)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"model.precision or use_wandb: not possible on this machine ({error})") from error
    if accelerator.num_processes > 1:
        raise ConfigError(
            f"training runs in one process, found {accelerator.num_processes}; start it without a launcher"
        )
    if config.use_wandb and not accelerator.log_with:
        raise ConfigError("use_wandb: the package wandb is not installed; install it with: pip install wandb")
    return accelerator


def _start_trackers(config: PipelineConfig, accelerator: Accelerator) -> None:
    if config.use_wandb:
        accelerator.init_trackers(
            config.wandb_project,
            config=config.model_dump(),
            init_kwargs={"wandb": {"tags": config.wandb_tags, "dir": config.log_dir}},
        )
