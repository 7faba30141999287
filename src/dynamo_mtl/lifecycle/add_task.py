"""Adds a task to a trained model: one adapter, one head and a branch of the router. No other weights change.

The data of the older tasks is not needed: the checkpoint stores features of some of their inputs, without the text.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from filelock import FileLock

from dynamo_mtl.checkpoint.folder import MEMORY
from dynamo_mtl.config.training_config import PipelineConfig, TrainingConfig
from dynamo_mtl.distributed import on_main_process
from dynamo_mtl.errors import CheckpointError, ConfigError
from dynamo_mtl.lifecycle.branch_phase import BranchInputs, covering, split_inputs, teach_branch
from dynamo_mtl.model.adapter import Adapter
from dynamo_mtl.model.calibration import Calibration
from dynamo_mtl.model.ood import RouterMemory
from dynamo_mtl.router_inputs import RouterInputs
from dynamo_mtl.storage import new_folder, only_writer
from dynamo_mtl.system import System, load_extended
from dynamo_mtl.tasks.registry import make_tasks
from dynamo_mtl.tasks.tables import all_examples, first_examples
from dynamo_mtl.tasks.task import Example, Task
from dynamo_mtl.training.answer_calibration import calibrate_answers
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.loop import run_phase
from dynamo_mtl.training.metrics_log import MetricsLog
from dynamo_mtl.training.phases.phase_1_adapters import AdapterPhase
from dynamo_mtl.training.provenance import described_data, source_revision
from dynamo_mtl.training.router_memory import collect_router_memory, trunk_features
from dynamo_mtl.training.run import shared_tables, start_equal

logger = logging.getLogger(__name__)


def add_task(
    checkpoint: Path,
    output: Path,
    config: PipelineConfig,
    start: Adapter | None = None,
) -> Path:
    """Train the last task of ``config`` and save the model with it.

    The adapters, heads and vocabularies of the older tasks stay bit-identical, and the router's decisions between these
    tasks do not change.

    Args:
        checkpoint: a trained model of the older tasks.
        output: folder for the new model; it must not exist yet.
        config: the checkpoint's configuration, with the added task as its last one and a router branch for it.
        start: adapter with the same settings from which the added task's adapter starts; a fresh one if None.

    Returns:
        ``output``.

    Raises:
        DynamoError: unusable checkpoint, configuration or data; before anything is trained.
    """
    name = list(config.tasks)[-1]
    accelerator = Accelerator()
    locks: list[FileLock] = []

    def prepare() -> Path:
        found = new_folder(output)
        locks.append(only_writer(found, "--output", inside=False))
        return found

    place = on_main_process(prepare)  # of several processes the first one writes
    try:
        return _add(checkpoint, place, config, name, start, accelerator)
    finally:
        for lock in locks:
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)


def _add(
    checkpoint: Path, output: Path, config: PipelineConfig, name: str, start: Adapter | None, accelerator: Accelerator
) -> Path:
    set_seed(config.training.seed)
    tables = shared_tables(config, {name: make_tasks(config.tasks)[name]})

    def examples(task: Task) -> Iterable[Example]:
        return all_examples(tables[task.name].train)

    system, metadata = load_extended(checkpoint, config, examples, accelerator.device)
    if system.model.memory is None:
        raise CheckpointError(
            f"{checkpoint}: no {MEMORY}, so nothing says what belongs to the tasks that are there; train its router "
            "with this version: dynamo train CONFIG --phase 2"
        )
    if start is not None:
        _start_from(system, name, start)
    start_equal(system, config.training.seed)
    began = time.perf_counter()
    source, settings = ExampleSource(system, tables).study(), config.training
    log = MetricsLog(Path(config.log_dir), accelerator)
    try:
        run_phase(AdapterPhase(source, name, settings), system, settings, config.data.num_workers, accelerator, log)
        calibrate_answers(source, name, settings.token_budget)
        calibration = _teach_router(source, name, settings, metadata.calibration, accelerator, log)
    finally:
        log.close()
    system.model.eval()
    seconds = metadata.train_seconds + time.perf_counter() - began
    changed = replace(
        metadata,
        format=type(metadata).format,
        tasks=list(system.tasks),
        commit=source_revision(),
        train_seconds=round(seconds, 1),
        **{key: {**getattr(metadata, key), **own} for key, own in described_data(config, tables).items()},
        calibration=calibration,
    )
    on_main_process(lambda: system.save(output, changed, config.to_yaml()))
    logger.info("saved %s", output)
    return output


def _start_from(system: System, name: str, start: Adapter) -> None:
    adapter = system.model.bank[name]
    if adapter.config != start.config:
        raise ConfigError(
            f"lora_configs.{name}: an adapter that starts from another one has its settings, "
            f"{start.config.model_dump()}; leave them out"
        )
    adapter.load_state_dict(start.state_dict())


def _teach_router(
    source: ExampleSource,
    name: str,
    config: TrainingConfig,
    calibration: Calibration,
    accelerator: Accelerator,
    log: MetricsLog,
) -> Calibration:
    """Train the added task's branch, and record its inputs as known. Returns the router's new calibration."""
    system, model = source.system, source.system.model
    inputs, added = _branch_inputs(source, name, config)
    teach_branch(system, inputs, config, accelerator, log)
    assert model.memory is not None
    model.memory = model.memory.joined(added.sample(config.router.memory_examples, config.seed))
    model.ood.extend(inputs.own, inputs.own_validation)
    return covering(calibration, system, inputs.own_validation)


def _branch_inputs(source: ExampleSource, name: str, config: TrainingConfig) -> tuple[BranchInputs, RouterMemory]:
    system = source.system
    known = system.model.memory
    assert known is not None
    route, rng = system.route_of(name), np.random.default_rng([config.seed, 3])
    added = collect_router_memory(source, config, [name])
    rows = source.choosing(name, config.eval_examples)
    asking = RouterInputs(system, "validation")
    instructed = [asking.instructed(name, row, asking.draw_instruction(name, rng)) for row in rows]
    plain = [one for row in rows if (one := asking.plain(name, row)) is not None]
    features, _ = trunk_features(system, [asking.encode(one) for one in (*instructed, *plain)], config.token_budget)
    inputs = split_inputs(added, known, route, features)
    if asking.requires_instruction(name):  # its texts without an instruction do not belong to it
        texts = first_examples(source.tables[name].train, config.router.novelty_examples)
        encoded = [system.encode_for_router(text.text, text.context, None, name) for text in texts]
        inputs = replace(
            inputs, other=torch.cat([inputs.other, trunk_features(system, encoded, config.token_budget)[0]])
        )
    return inputs, added
