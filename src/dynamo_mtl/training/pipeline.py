"""The three phases in order, with a checkpoint after each."""

from __future__ import annotations

import functools
import logging
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from filelock import FileLock

from dynamo_mtl.cores import free_cores
from dynamo_mtl.errors import CheckpointError, ConfigError, writable_folder
from dynamo_mtl.inference.system import System, alike_instructions, build_system, load_system, make_tasks
from dynamo_mtl.model.metadata import METADATA, Metadata
from dynamo_mtl.processes import first_does, here, make_equal
from dynamo_mtl.storage import only_writer, sweep
from dynamo_mtl.tasks.tables import TRAIN, all_examples, check_splits, data_revision, open_task_table, rows_hash
from dynamo_mtl.tasks.task import Example, Task
from dynamo_mtl.training.contracts import Phase
from dynamo_mtl.training.examples import ExampleSource, TaskTables
from dynamo_mtl.training.known_inputs import known_inputs
from dynamo_mtl.training.loop import run_phase
from dynamo_mtl.training.objective import Objective
from dynamo_mtl.training.phases.phase_1_adapters import AdapterPhase, adapter_updates, batch_size
from dynamo_mtl.training.phases.phase_2_router import (
    FeaturePhase,
    HeldOut,
    MixturePhase,
    calibrate,
    validation_features,
)
from dynamo_mtl.training.phases.phase_3_joint import JointPhase
from dynamo_mtl.training.phases.shared import SharedPhase
from dynamo_mtl.training.resume import LoopState
from dynamo_mtl.training.settings import PipelineConfig
from dynamo_mtl.training.states import STATES, RunStates
from dynamo_mtl.training.trackers import find_trackers, show_routing, start_trackers
from dynamo_mtl.training.tracking import NOTHING_AHEAD, Ahead, MetricsLog, start_text_log, stop_text_log

logger = logging.getLogger(__name__)

FOLDERS = {1: "phase_1", 2: "phase_2", 3: "final_model"}
"""Checkpoint folder of each phase."""
SHARED = 3
"""The one phase of a model without routed adapters gives its final model."""


def load_tables(config: PipelineConfig, tasks: dict[str, Task]) -> dict[str, TaskTables]:
    """Open and validate the training and validation data of all tasks."""
    seed = config.training.seed
    for task in tasks.values():
        check_splits(task, config.data)
    for sentence in alike_instructions(tasks):
        logger.warning("%s", sentence)
    return {
        name: TaskTables(
            open_task_table(task, TRAIN, config.data, seed), open_task_table(task, "validation", config.data, seed)
        )
        for name, task in tasks.items()
    }


def shared_tables(config: PipelineConfig, tasks: dict[str, Task]) -> dict[str, TaskTables]:
    """``load_tables`` in all processes of a job: the first one prepares what the others then read."""

    def prepare() -> None:
        load_tables(config, tasks)

    if here().count > 1:
        first_does(prepare)
    return load_tables(config, tasks)


def train(config: PipelineConfig, phases: Iterable[int], resume: str | None = None) -> Path:
    """Run phases in order; each starts from the checkpoint of the one before.

    Args:
        config: what is trained, and how.
        phases: any of 1, 2 and 3; a model without routed adapters has one phase, whatever is given.
        resume: go on with a run that did not end: ``latest``, or the folder of one of its states.

    Returns:
        The folder of the last checkpoint.

    Raises:
        DynamoError: bad configuration, data or backbone, or the checkpoint of an earlier phase is missing; before any
            training starts.
        Stopped: SIGTERM or Ctrl-C; the run has been saved.
    """
    routed = config.model.adapters == "routed"
    chosen = sorted(set(phases)) if routed else [SHARED]
    folder = Path(config.checkpoint_dir)
    Objective(config.training)
    before = folder / FOLDERS[chosen[0] - 1] if chosen[0] > 1 and routed else None
    accelerator = _accelerator(config)
    set_seed(config.training.seed)
    states = RunStates(folder / STATES, config, chosen)
    first_does(lambda: _recover(folder, states.folder))
    if before is not None and not (before / METADATA).is_file():
        raise CheckpointError(
            f"{before}: phase {chosen[0]} starts from phase {chosen[0] - 1}, which has not been trained; "
            f"run --phase {chosen[0] - 1} first, or --phase all"
        )
    tables = shared_tables(config, make_tasks(config))
    place, state = states.find(resume)
    choose_threads(config.training.num_threads, state.threads if state else None, accelerator.device)
    system, metadata, earlier = _start(config, tables, place or before, accelerator.device)
    if place is not None and earlier is not None:
        states.check_data(earlier, metadata)
    source = ExampleSource(system, tables)
    start_equal(system, config.training.seed)
    with _only_run(folder, Path(config.log_dir)):
        log = MetricsLog(Path(config.log_dir), accelerator, state.log_end if state else None)
        text_log = start_text_log(Path(config.log_dir))
        start_trackers(config, accelerator)
        if config.training.compile:
            for layer in system.model.encoder.layers:
                layer.compile()
        try:
            with states.stop.installed():
                states.follow(system, metadata, log, state)
                return _run(source, config, accelerator, log, states, state)
        finally:
            log.close()
            stop_text_log(text_log)


def choose_threads(wanted: int | None, before: int | None, device: torch.device) -> None:
    """Set the threads of a run, which then stay as they are: their number decides how sums are rounded.

    Threads wait for each other after every operation, so that one that has to wait for its core holds up all:
    ``benchmarks/busy.py`` measures it.

    Args:
        wanted: by the configuration.
        before: of the run that is resumed.
        device: where the model is.
    """
    most = torch.get_num_threads()
    if wanted is not None:
        torch.set_num_threads(wanted)
    elif device.type == "cpu" and most > 1 and "OMP_NUM_THREADS" not in os.environ:
        chosen = before or min(most, free_cores())
        if chosen < most:
            logger.info("others are at work on this machine: %d of %d threads (training.num_threads)", chosen, most)
        torch.set_num_threads(chosen)


def start_equal(system: System, seed: int) -> None:
    """Give all processes of a job the same parameters, and each its own dropout masks."""
    frozen = {id(p) for p in system.model.encoder.parameters() if system.model.config.freeze_backbone}
    make_equal([p for p in system.model.parameters() if id(p) not in frozen])
    if not here().first:
        torch.manual_seed(seed + _APART * here().rank)


_APART = 1_000_003
"""Between the seeds of two processes: far more than a user's seeds lie apart."""


def _recover(checkpoints: Path, states: Path) -> None:
    """Clear away what killed runs left, and give folders their names back, before any of them is looked for."""
    if not checkpoints.is_dir():
        return
    writable_folder(checkpoints, "checkpoint_dir")
    lock = only_writer(checkpoints, "checkpoint_dir")
    try:
        sweep(checkpoints)
        sweep(states)
    finally:
        lock.release()


@contextmanager
def _only_run(checkpoints: Path, logs: Path) -> Iterator[None]:
    """Make the folders of a run and keep other runs out of them.

    The first process of a job does so for all.
    """
    locks: list[FileLock] = []

    def prepare() -> None:
        writable_folder(checkpoints, "checkpoint_dir")
        writable_folder(logs, "log_dir")
        locks.append(only_writer(checkpoints, "checkpoint_dir"))

    try:
        first_does(prepare)
        yield
    finally:
        for lock in locks:
            lock.release()


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one optimizer."""

    phase: int
    make: Callable[[dict[str, Any]], Phase]
    """Makes it from what ``Phase.state`` gave when it began; from nothing at first. Must not use the random state."""
    workers: int
    ahead: Ahead = NOTHING_AHEAD


def _stages(
    source: ExampleSource, config: PipelineConfig, phases: Sequence[int], held_out: Callable[[], HeldOut]
) -> list[Stage]:
    settings, workers = config.training, config.data.num_workers
    if config.model.adapters != "routed":
        return [Stage(SHARED, lambda _: SharedPhase(source, settings), workers)]
    stages: list[Stage] = []
    if 1 in phases:
        tasks = list(source.system.tasks)
        work = [adapter_updates(source, task, settings) * batch_size(source, task, settings) for task in tasks]
        for number, task in enumerate(tasks):
            place = f"task {number + 1} of {len(tasks)}"
            later = sum(work[number + 1 :]) / batch_size(source, task, settings)
            ahead = Ahead(place, later)
            stages.append(Stage(1, lambda _, task=task: AdapterPhase(source, task, settings), workers, ahead))
    if 2 in phases:
        if not settings.routing_weight and not settings.router.mixture_steps:
            raise ConfigError(
                "training.router.mixture_steps: found 0 with training.routing_weight 0, so that phase 2 would train "
                "nothing; give one of them"
            )
        if settings.routing_weight:  # without the known task, there is nothing to learn from features alone
            stages.append(Stage(2, lambda _: FeaturePhase(source, settings, held_out()), 0))
        if settings.router.mixture_steps:
            stages.append(Stage(2, lambda _: MixturePhase(source, settings, held_out()), workers))
    if 3 in phases and settings.joint.max_steps:
        stages.append(Stage(3, lambda known: JointPhase(source, settings, held_out(), known.get("ranked")), workers))
    return stages


def _run(
    source: ExampleSource,
    config: PipelineConfig,
    accelerator: Accelerator,
    log: MetricsLog,
    states: RunStates,
    state: LoopState | None,
) -> Path:
    """Train all stages from ``state`` on. Returns the last phase's checkpoint."""
    held_out = functools.cache(lambda: validation_features(source, config.training))
    stages = _stages(source, config, states.phases, held_out)
    first = state.stage if state else 0
    last = Path(config.checkpoint_dir) / FOLDERS[states.phases[-1]]
    for number, stage in enumerate(stages):
        if number < first:
            continue
        start = state if state is not None and number == first and state.step else None
        phase = stage.make(start.numbers["phase"] if start else {})
        score = run_phase(
            phase, source.system, config.training, stage.workers, accelerator, log, states, start, ahead=stage.ahead
        )
        states.metadata = replace(states.metadata, validation_score=score)
        if number + 1 == len(stages) or stages[number + 1].phase != stage.phase:
            place = Path(config.checkpoint_dir) / FOLDERS[stage.phase]
            if stage.phase == 2:
                known = known_inputs(source, config.training)
                source.system.model.novelty = known.fit(config.training.seed)
                source.system.model.known = known.sample(config.training.router.memory_examples, config.training.seed)
            if stage.phase > 1 and config.model.adapters == "routed":
                states.metadata = replace(states.metadata, calibration=calibrate(source.system, held_out()))
            states.save_phase(place, FOLDERS[stage.phase])
            if stage.phase > 1 and log.has_trackers and config.model.adapters == "routed":
                show_routing(log, source, held_out(), states.metadata.calibration, FOLDERS[stage.phase])
        states.stage_done()
    if 3 in states.phases and config.model.adapters == "routed" and not config.training.joint.max_steps:
        logger.warning("phase 3: 0 updates (training.joint.max_steps), so the final model is that of phase 2")
        states.metadata = replace(states.metadata, calibration=calibrate(source.system, held_out()))
        states.save_phase(last, FOLDERS[3])
    states.clear()
    return last


def _start(
    config: PipelineConfig, tables: dict[str, TaskTables], before: Path | None, device: torch.device
) -> tuple[System, Metadata, Metadata | None]:
    """A fresh system, or a saved one with its metadata; phase 1 trains no router, so phase 2 starts a fresh one."""

    def examples(task: Task) -> Iterable[Example]:
        return all_examples(tables[task.name].train)

    earlier = None
    if before is None:
        system = build_system(config, examples, device)
    else:
        router_trained = before.name != FOLDERS[1]
        system, earlier = load_system(before, device, config, with_router=router_trained, for_training=True)
    metadata = Metadata(
        tasks=list(system.tasks),
        backbone=system.backbone.name,
        weight_hash=system.backbone.weight_hash,
        tap_layer=system.model.tap_layer,
        phase="",
        seed=config.training.seed,
        train_seconds=earlier.train_seconds if earlier is not None else 0.0,
        commit=source_revision(),
        device=device.type,
    )
    return system, replace(metadata, **described_data(config, tables)), earlier


def described_data(config: PipelineConfig, tables: Mapping[str, TaskTables]) -> dict[str, dict[str, Any]]:
    """What metadata says of the data of some tasks: how many rows, which ones, and of which commit on the hub."""
    tasks = make_tasks(config)
    found = {name: data_revision(tasks[name], config.data) for name in tables}
    return {
        "dataset_sizes": {name: len(own.train) for name, own in tables.items()},
        "data_hashes": {name: rows_hash(own.train, own.validation) for name, own in tables.items()},
        "data_revisions": {name: revision for name, revision in found.items() if revision is not None},
    }


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
        # The first process may prepare data for long, while the others wait for it.
        patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
        return Accelerator(
            mixed_precision=precision,
            log_with=find_trackers(config.chosen_trackers) or None,
            project_dir=config.log_dir,
            kwargs_handlers=[patience],
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(f"model.precision: not possible on this machine ({error})") from error
