"""Train the routed system and the systems to compare it with in the same way, and score them all.

``training.run.train`` trains every system into its own folder under ``checkpoint_dir``. Its configuration differs from
the given one only in what defines the system. A system that was already trained with the same settings is not trained
again. An interrupted training is resumed.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from dynamo_mtl.checkpoint.folder import CONFIG
from dynamo_mtl.checkpoint.metadata import METADATA, Metadata, read_metadata
from dynamo_mtl.config.comparison_config import OWN_TRAINING, SYSTEMS, CompareConfig
from dynamo_mtl.config.identity import changed_setting, settings_of
from dynamo_mtl.config.overrides import with_settings
from dynamo_mtl.config.training_config import PipelineConfig
from dynamo_mtl.distributed import on_main_process
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.evaluation.benchmark import (
    Scoreboard,
    load_predictor,
    make_result,
    systems_of,
)
from dynamo_mtl.evaluation.compared_systems import ComparedSystem, choose_oracle
from dynamo_mtl.evaluation.confidence import score_confidence
from dynamo_mtl.evaluation.inputs import Examples, task_examples, task_input
from dynamo_mtl.evaluation.result import Cost, Result
from dynamo_mtl.evaluation.routing_scores import score_routing
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.out_of_memory import free_memory
from dynamo_mtl.peak_memory import PeakMemory
from dynamo_mtl.storage import copy_folder, remove_folder
from dynamo_mtl.strict_yaml import read_settings
from dynamo_mtl.system import load_system
from dynamo_mtl.tasks.generation_task import GenerationTask
from dynamo_mtl.training.run import train
from dynamo_mtl.training.saved_states import LATEST
from dynamo_mtl.training.stages import FOLDERS

logger = logging.getLogger(__name__)

TWO_PASS = {"model.router_input": "last_hidden"}
PHASES = (1, 2, 3)


def compare_seeds(config: PipelineConfig, settings: CompareConfig, seeds: int, split: str = "validation") -> Result:
    """``compare`` for several seeds, the configured one and those after it, each in a folder of its own."""
    results = [compare(config, settings, split)]
    for seed in range(config.training.seed + 1, config.training.seed + seeds):
        place = Path(config.checkpoint_dir) / f"seed_{seed}"
        results.append(compare(changed_config(config, {"training.seed": seed}, place), settings, split))
    return over_seeds(results)


def compare(config: PipelineConfig, settings: CompareConfig, split: str = "validation") -> Result:
    """Train what is missing, score every system on the same examples, and time them.

    Raises:
        DynamoError: bad configuration or data, before any training starts.
        Stopped: SIGTERM or Ctrl-C; what was trained is kept.
    """
    if config.model.adapters != "routed":
        raise ConfigError(
            f"model.adapters: found {config.model.adapters}; the system that others are compared with is routed"
        )
    for name in OWN_TRAINING.keys() & set(settings.systems):
        _baseline_config(config, name, {})  # fails on contradictory settings before hours of training
    device = PartialState().device
    assert device is not None
    root = Path(config.checkpoint_dir)
    final = final_checkpoint(config)
    train_unless_done(config, final, PHASES)
    notes: dict[str, Any] = {"learning_rates": {}}
    folders = {"dynamo": final, "single_task": root / FOLDERS[1]}
    for name in OWN_TRAINING:
        if name in settings.systems:
            folders[name], notes["learning_rates"][name] = train_baseline(config, settings, name)
    if "two_pass" in settings.systems:
        folders["two_pass"] = _train_two_pass(config)
    system, metadata = load_system(final, device, config)
    predictor = Predictor(system, metadata.calibration)
    compared_systems = systems_of(predictor, settings.systems, metadata.seed)
    for name, folder in folders.items():
        if name in settings.systems and name != "dynamo":
            compared_systems[name] = _loaded(name, folder, device)
    limits = {
        n: settings.generation_examples if isinstance(t, GenerationTask) else None for n, t in system.tasks.items()
    }
    board = Scoreboard({n: task_examples(system, n, split, metadata.seed, limit) for n, limit in limits.items()})
    if "trivial" in settings.systems:
        board.add_trivial(system, metadata.seed)
    for name in SYSTEMS:
        if name in compared_systems:
            board.add(name, compared_systems[name])
    routing = score_routing(predictor, board.examples, config)
    times = _time(compared_systems, board.examples, settings)
    costs = {
        name: asdict(_cost(name, compared_systems[name], folders, times[name]))
        for name in SYSTEMS
        if name in compared_systems
    }
    confidence = score_confidence(system, config, split, metadata.seed, list(system.tasks))
    return make_result(
        metadata, system, split, board, routing, costs=costs, confidence=confidence, notes=notes,
        settings=settings_of(config),
    )  # fmt: skip


def final_checkpoint(config: PipelineConfig) -> Path:
    """Where ``compare`` leaves the routed system."""
    return Path(config.checkpoint_dir) / FOLDERS[3]


def _loaded(name: str, folder: Path, device: Any) -> ComparedSystem:
    if name != "two_pass":
        return ComparedSystem(load_predictor(folder, device), choose_oracle)
    system, metadata = load_system(folder, device)
    return systems_of(Predictor(system, metadata.calibration), ["dynamo"], metadata.seed)["dynamo"]


def changed_config(config: PipelineConfig, changes: Mapping[str, Any], folder: Path) -> PipelineConfig:
    """A configuration with ``{"section.key": value}`` changed, for a run in its own folder."""
    return with_settings(config, {**changes, "checkpoint_dir": str(folder), "log_dir": str(folder / "logs")})


def train_unless_done(config: PipelineConfig, final: Path, phases: Sequence[int]) -> None:
    """Train unless ``final`` is there with the same settings."""
    if (final / METADATA).is_file():
        difference = changed_setting(read_settings(final / CONFIG), config)
        if difference is None:
            logger.info("%s has been trained with these settings already", final)
            return
        logger.info("%s was trained with another %s: training anew", final, difference[0])
    free_memory()
    train(config, phases, resume=LATEST)


def train_baseline(config: PipelineConfig, settings: CompareConfig, name: str) -> tuple[Path, dict[str, Any]]:
    """Train a baseline at the best of its learning rates. Returns its folder, and what the trials found."""
    key = OWN_TRAINING[name][1]
    root = Path(config.checkpoint_dir) / name
    rates = settings.learning_rates.get(name) or [getattr(config.training, key)]
    losses: dict[str, float] = {}
    for rate in rates if len(rates) > 1 else []:
        place = root / "trials" / f"{rate:g}"
        trial = _baseline_config(config, name, {key: rate, "step_share": settings.trial_share}, place)
        train_unless_done(trial, place / FOLDERS[3], PHASES)
        score = read_metadata(place / FOLDERS[3]).validation_score
        losses[f"{rate:g}"] = math.inf if score is None else -score
        logger.info("%s at learning rate %g: validation loss %.4f", name, rate, losses[f"{rate:g}"])
    best = min(rates, key=lambda rate: losses.get(f"{rate:g}", math.inf))
    train_unless_done(_baseline_config(config, name, {key: best}), root / FOLDERS[3], PHASES)
    return root / FOLDERS[3], {"chosen": best, "trial_losses": losses}


def _baseline_config(
    config: PipelineConfig, name: str, training: Mapping[str, Any], place: Path | None = None
) -> PipelineConfig:
    """The configuration of a system that is trained from the start, in its own folder or in ``place``."""
    changes = {f"training.{key}": value for key, value in training.items()}
    return changed_config(config, {**OWN_TRAINING[name][0], **changes}, place or Path(config.checkpoint_dir) / name)


def _train_two_pass(config: PipelineConfig) -> Path:
    """Train the other router over the same adapters of phase 1."""
    root = Path(config.checkpoint_dir) / "two_pass"
    changed = changed_config(config, TWO_PASS, root)

    def copy() -> None:
        if (root / FOLDERS[1]).exists():  # perhaps of other tasks
            remove_folder(root / FOLDERS[1])
        copy_folder(Path(config.checkpoint_dir) / FOLDERS[1], root / FOLDERS[1])

    on_main_process(copy)
    train_unless_done(changed, root / FOLDERS[2], (2,))
    return root / FOLDERS[2]


def _time(
    compared_systems: Mapping[str, ComparedSystem], examples: Examples, settings: CompareConfig
) -> dict[str, tuple[float, float | None]]:
    """Measure milliseconds per input and extra MiB of each system on one mixed sample, in interleaved rounds."""
    if not compared_systems:
        return {}
    system = next(iter(compared_systems.values())).predictor.system
    chosen = [(task, row) for task, rows in examples.items() for row in rows[: settings.timing_inputs]]
    tasks = [task for task, _ in chosen]
    inputs = [task_input(system, task, row) for task, row in chosen]
    seconds: dict[str, list[float]] = {name: [] for name in compared_systems}
    extra: dict[str, float] = {}
    for _ in range(settings.timing_rounds):
        for name, compared in compared_systems.items():
            before = PeakMemory(system.device)
            at_start, began = before.now_mib(), time.perf_counter()
            compared.answer(inputs, tasks)
            seconds[name].append(time.perf_counter() - began)
            if system.device.type == "cuda":  # elsewhere memory that was freed stays with the process
                extra[name] = max(extra.get(name, 0.0), before.mib() - at_start)
    return {name: (1000 * statistics.median(values) / len(inputs), extra.get(name)) for name, values in seconds.items()}


def _cost(name: str, compared: ComparedSystem, folders: Mapping[str, Path], times: tuple[float, float | None]) -> Cost:
    """Return the cost of a system. One without its own folder is the routed model with another chooser."""
    model = compared.predictor.system.model
    trained: Metadata | None = read_metadata(folders[name]) if name in folders else None
    unused = sum(p.numel() for p in model.router.parameters()) if name == "single_task" else 0  # phase 1 trains none
    return Cost(
        trained_parameters=model.trainable_parameters() - unused,
        train_seconds=trained.train_seconds if trained else None,
        train_peak_mib=trained.peak_memory_mib if trained else None,
        inference_ms=times[0],
        inference_extra_mib=times[1],
    )


def over_seeds(results: Sequence[Result]) -> Result:
    """One result of runs that differ in their seed: means, and the standard deviation of the main metrics."""
    first = results[0]
    if len(results) == 1:
        return first

    def main(result: Result, system: str, task: str) -> float:
        return result.systems[system][task][result.main_metrics[task]]

    return replace(
        first,
        systems={
            system: {
                task: {metric: float(np.mean([r.systems[system][task][metric] for r in results])) for metric in values}
                for task, values in tasks.items()
            }
            for system, tasks in first.systems.items()
        },
        spread={
            system: {task: statistics.stdev(main(r, system, task) for r in results) for task in tasks}
            for system, tasks in first.systems.items()
        },
        intervals={},
        seeds=[
            {"seed": r.seed, "systems": r.systems, "intervals": r.intervals, "routing": r.routing, "notes": r.notes}
            for r in results
        ],
    )
