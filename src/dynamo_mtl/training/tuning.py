"""Searches for settings with Optuna: one adapter at a time, then the router on cached features, then the tap layer.

Adapters are independent, so each task has a small search of its own, in which a trial makes a share of the updates. A
router trains in moments on features that are computed once. All trials are stored in one SQLite file, from which an
interrupted search continues. A trial that is behind the median of the others at a validation is stopped.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import optuna

from dynamo_mtl.config.overrides import with_settings
from dynamo_mtl.config.training_config import PipelineConfig
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.figures import COLORS, Picture, save_pictures
from dynamo_mtl.storage import only_writer, writable_folder
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.training.tuning_trials import ROUTER, TAP, Found, Settings, Trials, with_scales

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

BEST, PICTURE = "best.yaml", "tune"


def tune(config: PipelineConfig, trials: int, share: float, folder: Path, tap: bool = True) -> list[Found]:
    """Search, and write ``best.yaml`` with the settings that were found, and a picture.

    Args:
        config: the configuration to improve.
        trials: trials of each adapter and of the router, including those of earlier calls with the same folder. The tap
            layer has one trial for each layer.
        share: share of a task's updates that a trial makes, in (0, 1].
        folder: where the trials are stored; an interrupted search in it continues.
        tap: whether to search for the tap layer too, which trains every task again for each layer.

    Raises:
        ConfigError: a model without a router, or a folder that cannot be written or is in use.
    """
    if config.model.adapters != "routed":
        raise ConfigError(f"model.adapters: found {config.model.adapters}; tune searches settings of routed adapters")
    writable_folder(folder, "--output")
    lock = only_writer(folder, "--output")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searches = Trials(config, share, folder)
    found: list[Found] = []
    try:
        for task in config.tasks:
            own = searches.adapter_settings(task)
            found.append(
                searches.search(task, trials, lambda trial, task=task: searches.adapter_trial(trial, task), own)
            )
            _write_best(config, found, folder)
        with searches.features() as router_trial:
            found.append(searches.search(ROUTER, trials, router_trial, searches.router_settings()))
        _write_best(config, found, folder)
        if tap:
            settings = _merged(config, found)
            found.append(
                searches.search(
                    TAP,
                    len(searches.taps),
                    lambda trial: searches.tap_trial(trial, settings),
                    sampler=searches.tap_grid,
                )
            )
            _write_best(config, found, folder)
    finally:
        lock.release()
    save_pictures([_picture(searches.studies)], folder)
    return found


def _merged(config: PipelineConfig, found: list[Found]) -> Settings:
    return with_scales(config, {key: value for one in found for key, value in one.settings.items()})


def _write_best(config: PipelineConfig, found: list[Found], folder: Path) -> None:
    best = with_settings(config, _merged(config, found))
    (folder / BEST).write_text(dump_yaml(best.model_dump()), encoding="utf-8")


def _picture(studies: Mapping[str, optuna.Study]) -> Picture:
    """Plot the best score of each search so far, relative to its first finished trial."""

    def fill(axes: Axes) -> None:
        for number, (name, study) in enumerate(studies.items()):
            finished = {t.number: t.value for t in study.trials if t.value is not None and t.state.name == "COMPLETE"}
            if not finished:
                continue
            values = list(finished.values())
            best = itertools.accumulate(values, max)
            scores = [100 * (value - values[0]) / max(1e-9, abs(values[0])) for value in best]
            color = COLORS[number % len(COLORS)]
            axes.step(list(finished), scores, where="post", label=name, color=color)
        axes.set_xlabel("trial")
        axes.set_ylabel("best score so far, % above the first trial's")
        axes.legend(frameon=False, fontsize=8)

    return Picture(PICTURE, "The best score of each search so far, relative to its first trial.", (6.4, 3.6), fill)
