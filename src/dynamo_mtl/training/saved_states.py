"""Manages the saved states of a run: when to write them, which one to resume from, and when to remove them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from dynamo_mtl.checkpoint.folder import CONFIG
from dynamo_mtl.checkpoint.metadata import Metadata
from dynamo_mtl.config.identity import changed_setting
from dynamo_mtl.config.training_config import PipelineConfig
from dynamo_mtl.distributed import on_main_process
from dynamo_mtl.errors import CheckpointError, ConfigError
from dynamo_mtl.peak_memory import PeakMemory
from dynamo_mtl.storage import remove_folder, verify_folder
from dynamo_mtl.strict_yaml import read_settings
from dynamo_mtl.system import System
from dynamo_mtl.training.loop_state import (
    PREFIX,
    LoopState,
    newest_state,
    random_state,
    read_state,
    restore_random_state,
    rotate,
)
from dynamo_mtl.training.metrics_log import MetricsLog
from dynamo_mtl.training.stop_signals import Stopped, StopSignals

logger = logging.getLogger(__name__)

STATES = "resume"
"""Folder of the states under ``checkpoint_dir``."""
LATEST = "latest"


class RunStates:
    """The states of one run, in one folder."""

    def __init__(self, folder: Path, config: PipelineConfig, phases: Sequence[int]) -> None:
        self.folder, self.config, self.phases = folder, config, list(phases)
        self.stop = StopSignals()
        self.stage = 0
        self._began = time.perf_counter()
        self._before = 0.0

    def find(self, resume: str | None) -> tuple[Path | None, LoopState | None]:
        """Return the folder of the state to resume from and the state, or None for both to start anew.

        Raises:
            CheckpointError: the named state is damaged or belongs to another run.
            ConfigError: there are states of an unfinished run, and ``resume`` does not say what to do with them.
        """
        if resume is None:
            if on_main_process(lambda: any(self.folder.glob(f"{PREFIX}*"))):
                raise ConfigError(
                    f"{self.folder}: holds the state of a run that did not end; go on with it with --resume {LATEST}, "
                    "or remove the folder to start anew"
                )
            return None, None
        place = on_main_process(lambda: newest_state(self.folder)) if resume == LATEST else Path(resume)
        if place is None:
            logger.info("no state under %s: starting from the beginning", self.folder)
            return None, None
        verify_folder(place)
        state = read_state(place)
        if state.phases != self.phases:
            names = ", ".join(map(str, state.phases))
            raise CheckpointError(f"{place}: the run was started for phases {names}; resume it with the same --phase")
        self._check_config(place)
        logger.info("going on from %s", place)
        return place, state

    def _check_config(self, place: Path) -> None:
        difference = changed_setting(read_settings(place / CONFIG), self.config)
        if difference is not None:
            key, then, now = difference
            raise CheckpointError(
                f"{place}: the run was started with {key} {then!r}, now it is {now!r}; "
                "a resumed run needs the same settings"
            )

    def check_data(self, then: Metadata, now: Metadata) -> None:
        """Check that a resumed run has the data it was started with. Raises ``CheckpointError`` if it has not."""
        for name, rows in now.dataset_sizes.items():
            if then.dataset_sizes.get(name) != rows:
                raise CheckpointError(
                    f"{self.folder}: the run was started with {then.dataset_sizes.get(name)} training examples of "
                    f"'{name}', now there are {rows}"
                )
            if then.data_hashes.get(name) != now.data_hashes[name]:
                raise CheckpointError(
                    f"{self.folder}: the rows of '{name}' are not those that the run was started with, though they are "
                    "as many; a resumed run needs the same data, or remove the folder to start anew"
                )

    def follow(self, system: System, metadata: Metadata, log: MetricsLog, state: LoopState | None) -> None:
        """Set what is saved from now on, and continue from ``state`` if it is given."""
        self.system, self.metadata, self.log = system, metadata, log
        self._peak = PeakMemory(system.device)
        self._began, self._before = time.perf_counter(), metadata.train_seconds
        if state is not None:
            self.stage, self._before = state.stage, state.seconds
            restore_random_state(state.tensors)

    def _metadata_now(self, phase: str) -> Metadata:
        """Metadata of a checkpoint that is written now."""
        peak = round(max(self.metadata.peak_memory_mib, self._peak.mib()), 1)
        return replace(self.metadata, phase=phase, train_seconds=round(self._seconds(), 1), peak_memory_mib=peak)

    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._began

    def after_step(
        self, step: int, numbers: Callable[[], dict[str, Any]], tensors: Callable[[], dict[str, Tensor]]
    ) -> None:
        """Save the run if it is due. If the run should stop, save it and raise ``Stopped``."""
        if self.stop.wanted is not None or step % self.config.training.save_every == 0:
            self._save(step, numbers(), tensors())
        if self.stop.wanted is not None:
            raise Stopped(self.stop.wanted)

    def stage_done(self) -> None:
        """Save the run between two stages."""
        self.stage += 1
        self._save(0, {}, {})

    def stop_if_wanted(self) -> None:
        """Raise ``Stopped`` in all processes if one of them was asked to stop."""
        self.stop.agree()
        if self.stop.wanted is not None:
            raise Stopped(self.stop.wanted)

    def _save(self, step: int, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors = {**tensors, **random_state()}
        state = LoopState(
            self.stage, step, self.phases, self._seconds(), self.log.end, torch.get_num_threads(), numbers, tensors
        )
        place = self.folder / state.folder_name

        def write() -> None:
            try:
                self.system.save(place, self._metadata_now("unfinished"), self.config.to_yaml(), state.write)
                rotate(self.folder, self.config.training.keep_states)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{place}: the state of the run could not be written ({error})") from error

        on_main_process(write)
        logger.debug("saved %s", place)

    def save_phase(self, place: Path, phase: str) -> None:
        """Write the checkpoint of a phase that is complete."""
        on_main_process(lambda: self.system.save(place, self._metadata_now(phase), self.config.to_yaml()))
        logger.info("saved %s", place)

    def clear(self) -> None:
        """Remove all states: the run has ended."""

        def remove() -> None:
            for folder in self.folder.glob(f"{PREFIX}*"):
                remove_folder(folder)
            with suppress(OSError):  # missing if nothing was trained; kept if it holds anything else
                self.folder.rmdir()

        on_main_process(remove)
