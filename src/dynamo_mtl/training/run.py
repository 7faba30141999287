"""Runs the three phases in order, and writes a checkpoint after each."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from filelock import FileLock

from dynamo_mtl.checkpoint.metadata import METADATA, Metadata
from dynamo_mtl.config.training_config import PipelineConfig
from dynamo_mtl.cores import free_cores
from dynamo_mtl.distributed import broadcast, on_main_process, world
from dynamo_mtl.errors import CheckpointError, ConfigError
from dynamo_mtl.storage import only_writer, sweep, writable_folder
from dynamo_mtl.system import System, build_system, load_system
from dynamo_mtl.tasks.general_texts import general_examples
from dynamo_mtl.tasks.registry import alike_instructions, alone_in_type, make_tasks
from dynamo_mtl.tasks.tables import TRAIN, all_examples, check_splits, open_task_table
from dynamo_mtl.tasks.task import Example, Task
from dynamo_mtl.tasks.unlabelled import unlabelled_examples
from dynamo_mtl.training.answer_calibration import calibrate_answers
from dynamo_mtl.training.examples import ExampleSource, TaskTables
from dynamo_mtl.training.loop import run_phase
from dynamo_mtl.training.loop_state import LoopState
from dynamo_mtl.training.metrics_log import MetricsLog, start_text_log, stop_text_log
from dynamo_mtl.training.objective import Objective
from dynamo_mtl.training.phases.phase_2_router import (
    HeldOut,
    calibrate,
    validation_features,
    warn_of_confusions,
)
from dynamo_mtl.training.provenance import described_data, source_revision
from dynamo_mtl.training.router_memory import collect_router_memory
from dynamo_mtl.training.saved_states import STATES, RunStates
from dynamo_mtl.training.stages import FOLDERS, SHARED, make_stages
from dynamo_mtl.training.trackers import find_trackers, show_routing, start_trackers

logger = logging.getLogger(__name__)


def load_tables(config: PipelineConfig, tasks: dict[str, Task]) -> dict[str, TaskTables]:
    """Open and validate the training and validation data of all tasks."""
    seed = config.training.seed
    for task in tasks.values():
        check_splits(task, config.data)
    for sentence in alike_instructions(tasks):
        logger.warning("%s", sentence)
    return {
        name: TaskTables(
            open_task_table(task, TRAIN, config.data, seed),
            open_task_table(task, "validation", config.data, seed),
            _unlabelled(config, task),
            _general(config, task),
        )
        for name, task in tasks.items()
    }


def _unlabelled(config: PipelineConfig, task: Task) -> list[Example]:
    most = config.training.router.examples_per_task
    places = task.config.router_files
    return [example for place in places for example in unlabelled_examples(task, place, TRAIN, config.data, most)]


def _general(config: PipelineConfig, task: Task) -> list[Example]:
    count = config.training.router.general_texts if task.name in alone_in_type(config.tasks) else 0
    return general_examples(task, count, config.training.seed)


def shared_tables(config: PipelineConfig, tasks: dict[str, Task]) -> dict[str, TaskTables]:
    """Call ``load_tables`` in all processes of a job. The first one prepares the data that the others then read."""

    def prepare() -> None:
        load_tables(config, tasks)

    if world().size > 1:
        on_main_process(prepare)
    return load_tables(config, tasks)


def train(config: PipelineConfig, phases: Iterable[int], resume: str | None = None) -> Path:
    """Run phases in order; each starts from the checkpoint of the one before.

    Args:
        config: what is trained, and how.
        phases: any of 1, 2 and 3. Ignored for a model without routed adapters, which has a single phase.
        resume: continue an unfinished run: ``latest``, or the folder of one of its states.

    Returns:
        The folder of the last checkpoint.

    Raises:
        DynamoError: before training, bad configuration, data or backbone, or a missing checkpoint of an earlier phase;
            during training, a loss that is not finite or too little memory.
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
    on_main_process(lambda: _recover(folder, states.folder))
    if before is not None and not (before / METADATA).is_file():
        raise CheckpointError(
            f"{before}: phase {chosen[0]} starts from phase {chosen[0] - 1}, which has not been trained; "
            f"run --phase {chosen[0] - 1} first, or --phase all"
        )
    tables = shared_tables(config, make_tasks(config.tasks))
    place, state = states.find(resume)
    choose_threads(config.training.num_threads, state.threads if state else None, accelerator.device)
    system, metadata, earlier = _start(config, tables, place or before, accelerator.device)
    if place is not None and earlier is not None:
        states.check_data(earlier, metadata)
    source = ExampleSource(system, tables).study()
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
    """Set the number of threads for the whole run. It decides how sums are rounded, so a resumed run keeps it.

    Threads wait for each other after every operation, so one that waits for a busy core delays all of them
    (``benchmarks/busy.py`` measures this).

    Args:
        wanted: number in the configuration, if given.
        before: number of the run that is resumed, if any.
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
    broadcast([p for p in system.model.parameters() if id(p) not in frozen])
    if not world().is_main:
        torch.manual_seed(seed + _APART * world().number)


_APART = 1_000_003
"""Distance between the seeds of two processes, far larger than that between seeds that users choose."""


def _recover(checkpoints: Path, states: Path) -> None:
    """Remove what killed runs left and restore the names of folders, before any folder is looked up."""
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
    """Create the folders of a run, and lock its checkpoint folder against other runs.

    The first process of a job does this for all.
    """
    locks: list[FileLock] = []

    def prepare() -> None:
        writable_folder(checkpoints, "checkpoint_dir")
        writable_folder(logs, "log_dir")
        locks.append(only_writer(checkpoints, "checkpoint_dir"))

    try:
        on_main_process(prepare)
        yield
    finally:
        for lock in locks:
            lock.release()


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
    stages = make_stages(source, config, states.phases, held_out)
    first = state.stage if state else 0
    last = Path(config.checkpoint_dir) / FOLDERS[states.phases[-1]]
    for number, stage in enumerate(stages):
        if number < first:
            continue
        start = state if state is not None and number == first and state.step else None
        phase = stage.make(start.numbers["phase"] if start else {})
        with states.stop.deferred():  # until the stage is saved
            score = run_phase(
                phase, source.system, config.training, stage.workers, accelerator, log, states, start, ahead=stage.ahead
            )
            states.metadata = replace(states.metadata, validation_score=score)
            if number + 1 == len(stages) or stages[number + 1].phase != stage.phase:
                _end_phase(source, config, log, states, stage.phase, held_out)
            states.stage_done()
        states.stop_if_wanted()
    if 3 in states.phases and config.model.adapters == "routed" and not config.training.joint.max_steps:
        logger.warning("phase 3: 0 updates (training.joint.max_steps), so the final model is that of phase 2")
        states.metadata = replace(states.metadata, calibration=calibrate(source.system, held_out()))
        states.save_phase(last, FOLDERS[3])
    states.clear()
    return last


def _end_phase(
    source: ExampleSource,
    config: PipelineConfig,
    log: MetricsLog,
    states: RunStates,
    phase: int,
    held_out: Callable[[], HeldOut],
) -> None:
    """Fit what follows from the trained adapters or the trained router, and write the checkpoint of a phase."""
    model, routed = source.system.model, phase > 1 and config.model.adapters == "routed"
    if phase != 2:
        for task in source.tables:
            calibrate_answers(source, task, config.training.token_budget)
    if phase == 2:
        memory = collect_router_memory(source, config.training)
        model.ood = memory.fit(config.training.seed)
        model.memory = memory.sample(config.training.router.memory_examples, config.training.seed)
    if routed:
        states.metadata = replace(states.metadata, calibration=calibrate(source.system, held_out()))
        warn_of_confusions(source.system, held_out())
    states.save_phase(Path(config.checkpoint_dir) / FOLDERS[phase], FOLDERS[phase])
    if routed and log.has_trackers:
        show_routing(log, source, held_out(), states.metadata.calibration, FOLDERS[phase])


def _start(
    config: PipelineConfig, tables: dict[str, TaskTables], before: Path | None, device: torch.device
) -> tuple[System, Metadata, Metadata | None]:
    """Return a fresh system or the one saved in ``before``, its metadata for this run, and the saved metadata.

    Phase 1 trains no router, so phase 2 starts with a fresh one.
    """

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


def _accelerator(config: PipelineConfig) -> Accelerator:
    precision = "fp16" if config.model.precision == "fp16" else "no"
    try:
        # The others wait while the first process prepares data, which may take long.
        patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
        return Accelerator(
            mixed_precision=precision,
            log_with=find_trackers(config.chosen_trackers) or None,
            project_dir=config.log_dir,
            kwargs_handlers=[patience],
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(f"model.precision: not possible on this machine ({error})") from error
