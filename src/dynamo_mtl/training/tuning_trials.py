"""Runs the trials of a search: one adapter by itself, the router by itself, and the tap layer."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import optuna
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from dynamo_mtl.config.identity import deciding_settings
from dynamo_mtl.config.overrides import with_settings
from dynamo_mtl.config.training_config import PipelineConfig
from dynamo_mtl.errors import ConfigError, DivergedError
from dynamo_mtl.model.router import Router
from dynamo_mtl.system import build_system
from dynamo_mtl.tasks.registry import make_tasks
from dynamo_mtl.tasks.tables import all_examples
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.loop import run_phase
from dynamo_mtl.training.metrics_log import MetricsLog
from dynamo_mtl.training.objective import Objective
from dynamo_mtl.training.optimizer import router_group
from dynamo_mtl.training.phases.phase import SCORE
from dynamo_mtl.training.phases.phase_1_adapters import AdapterPhase
from dynamo_mtl.training.phases.phase_2_router import FeaturePhase, validation_features
from dynamo_mtl.training.run import load_tables

logger = logging.getLogger(__name__)

STORE = "trials.db"
ROUTER, TAP = "router", "tap layer"
Settings = dict[str, Any]
Config = TypeVar("Config", bound=PipelineConfig)

OF = "configuration"
"""Attribute of a study that identifies the configuration it searches."""
RANKS = [4, 8, 16, 32, 64]
TERMS = ("smoothing", "consistency")
"""Terms of the objective whose weights are searched; a weight of 0 is possible."""
STARTUP = 3
"""First trials of a search, which the median rule never stops, so that there is a median."""


@dataclass(frozen=True)
class Found:
    """The best trial of one search."""

    search: str
    score: float
    """Higher is better: minus a task's validation loss, the router's score, or the result of ``Trials.tap_trial``."""
    settings: Settings
    trials: int
    pruned: int


class _Watched:
    """A phase that reports its validations to a trial."""

    def __init__(self, phase: Any, trial: optuna.Trial) -> None:
        self._phase, self._trial, self._step = phase, trial, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._phase, name)

    def validate(self) -> dict[str, float]:
        """Validate, report the score, and prune the trial if the others were better at this point."""
        values = self._phase.validate()
        self._trial.report(values[SCORE], self._step)
        self._step += 1
        if self._trial.should_prune():
            raise optuna.TrialPruned
        return values


def _forgiving(objective: Callable[[optuna.Trial], float]) -> Callable[[optuna.Trial], float]:
    """Wrap an objective so that a trial is pruned if its training diverges, since others may not diverge."""

    def trial_value(trial: optuna.Trial) -> float:
        try:
            return objective(trial)
        except DivergedError as error:
            raise optuna.TrialPruned(str(error)) from error

    return trial_value


class Trials:
    """What trials share: data, log, storage."""

    def __init__(self, config: PipelineConfig, share: float, folder: Path) -> None:
        self.config, self.share, self.folder = config, share, folder
        self.identity = hashlib.sha256(f"{deciding_settings(config)} {share}".encode()).hexdigest()
        self.tables = load_tables(config, make_tasks(config.tasks))
        self.accelerator = Accelerator()
        self.studies: dict[str, optuna.Study] = {}
        layers = build_system(config, self._examples, torch.device("cpu")).model.encoder.config.num_layers
        self.taps = list(range(layers // 2 + 1))
        self.tap_grid = optuna.samplers.GridSampler({"model.tap_layer": self.taps}, seed=config.training.seed)

    def _examples(self, task: Any) -> Iterator[Any]:
        return all_examples(self.tables[task.name].train)

    def search(
        self,
        name: str,
        trials: int,
        objective: Callable[[optuna.Trial], float],
        first: Settings | None = None,
        sampler: optuna.samplers.BaseSampler | None = None,
    ) -> Found:
        """Run a search until it has ``trials`` finished trials; the first one uses the settings ``first`` if given.

        Raises:
            ConfigError: the folder holds trials of another configuration or share, or every trial was pruned.
        """
        study = optuna.create_study(
            storage=f"sqlite:///{self.folder / STORE}",
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            sampler=sampler or optuna.samplers.TPESampler(seed=self.config.training.seed, n_startup_trials=STARTUP),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=1),
        )
        self.studies[name] = study
        known = study.user_attrs.get(OF)
        if known is not None and known != self.identity:
            raise ConfigError(
                f"--output: {self.folder / STORE} holds trials of another configuration or share; name another folder"
            )
        if known is None:
            study.set_user_attr(OF, self.identity)
            if first is not None:
                study.enqueue_trial(first)
        done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        left = trials - len(study.get_trials(deepcopy=False, states=done))
        if left > 0:
            study.optimize(_forgiving(objective), n_trials=left, callbacks=[self._say])
        pruned = len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.PRUNED,)))
        if not study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
            raise ConfigError(
                f"{name}: no trial of {len(study.trials)} came to its end; look for what makes training diverge"
            )
        best = study.best_trial
        assert best.value is not None
        return Found(name, best.value, dict(best.params), len(study.trials), pruned)

    def _say(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        value = "given up" if trial.value is None or trial.state.name == "PRUNED" else f"{trial.value:.4f}"
        shown = ", ".join(f"{key} {setting:.3g}" for key, setting in trial.params.items())
        logger.info("%s  trial %d  %s  %s", study.study_name, trial.number, value, shown)

    @contextmanager
    def _log(self, name: str) -> Iterator[MetricsLog]:
        log = MetricsLog(self.folder / "logs" / name, self.accelerator)
        try:
            yield log
        finally:
            log.close()

    def _task_score(self, task: str, settings: Settings, trial: optuna.Trial | None) -> float:
        """Train one adapter by itself for the share of its updates. Returns minus its validation loss."""
        config = with_settings(_alone(self.config, task), {**settings, "training.step_share": self.share})
        set_seed(config.training.seed)
        system = build_system(config, self._examples, self.accelerator.device)
        phase: Any = AdapterPhase(ExampleSource(system, {task: self.tables[task]}).study(), task, config.training)
        phase.eval_every = max(1, min(phase.eval_every, phase.steps // 4))
        phase.by_loss = True  # smoother than a metric over few rows, and of one kind for all tasks
        with self._log(task) as log:
            watched: Any = phase if trial is None else _Watched(phase, trial)
            return run_phase(watched, system, config.training, config.data.num_workers, self.accelerator, log)

    def adapter_trial(self, trial: optuna.Trial, task: str) -> float:
        """Try a rank and learning rates for a task's adapter; ``with_scales`` keeps its scale."""
        lora = self.config.lora_configs[task]
        rank = trial.suggest_categorical(f"lora_configs.{task}.rank", sorted({*RANKS, lora.rank}))
        rate = trial.suggest_float(f"tasks.{task}.training.lora_lr", 1e-4, 5e-3, log=True)
        head = trial.suggest_float(f"tasks.{task}.training.head_lr", 1e-4, 5e-3, log=True)
        own = {
            f"lora_configs.{task}.rank": rank,
            f"tasks.{task}.training.lora_lr": rate,
            f"tasks.{task}.training.head_lr": head,
        }
        return self._task_score(task, with_scales(self.config, own), trial)

    def adapter_settings(self, task: str) -> Settings:
        """Current values of the settings that are searched for a task."""
        training, own = self.config.training, self.config.tasks[task].training
        return {
            f"lora_configs.{task}.rank": self.config.lora_configs[task].rank,
            f"tasks.{task}.training.lora_lr": own.lora_lr or training.lora_lr,
            f"tasks.{task}.training.head_lr": own.head_lr or training.head_lr,
        }

    def router_settings(self) -> Settings:
        """Current values of the settings that are searched for the router."""
        training = self.config.training
        weights = {f"training.{term}_weight": getattr(training, f"{term}_weight") for term in TERMS}
        return {"training.router_lr": training.router_lr, "router.dropout": self.config.router.dropout, **weights}

    @contextmanager
    def features(self) -> Iterator[Callable[[optuna.Trial], float]]:
        """Compute the router's features once, and yield the objective that its trials share."""
        set_seed(self.config.training.seed)
        system = build_system(self.config, self._examples, self.accelerator.device)
        source = ExampleSource(system, self.tables)
        held_out = validation_features(source, self.config.training)
        cached = FeaturePhase(source, self.config.training, held_out)

        def trial_of(trial: optuna.Trial) -> float:
            own: Settings = {
                "training.router_lr": trial.suggest_float("training.router_lr", 1e-4, 3e-3, log=True),
                "router.dropout": trial.suggest_float("router.dropout", 0.0, 0.5),
                **{
                    f"training.{term}_weight": trial.suggest_float(f"training.{term}_weight", 0.0, 0.3)
                    for term in TERMS
                },
            }
            config = with_settings(self.config, own)
            return self._train_router(cached, source, config, trial)

        yield trial_of

    def _train_router(
        self, phase: Any, source: ExampleSource, config: PipelineConfig, trial: optuna.Trial | None
    ) -> float:
        set_seed(config.training.seed)
        model = source.system.model
        router = Router(config.router, model.router.feature_size, len(source.system.tasks))
        model.router = router.to(source.system.device)
        phase.config, phase.objective = config.training, Objective(config.training)
        phase.groups = [router_group(model, config.training.router_lr, config.training)]
        with self._log(ROUTER) as log:
            watched: Any = phase if trial is None else _Watched(phase, trial)
            return run_phase(watched, source.system, config.training, 0, self.accelerator, log)

    def tap_trial(self, trial: optuna.Trial, settings: Settings) -> float:
        """Score a tap layer: minus the tasks' mean loss relative to the first trial, minus the router's error rate."""
        tap = trial.suggest_categorical("model.tap_layer", self.taps)
        at = {**settings, "model.tap_layer": tap}
        losses = {task: -self._task_score(task, _of_task(at, task), None) for task in self.config.tasks}
        trial.set_user_attr("losses", losses)
        first = self._first_losses(trial, losses)
        relative = sum(losses[task] / first[task] for task in losses) / len(losses)
        config = with_settings(self.config, at)
        set_seed(config.training.seed)
        system = build_system(config, self._examples, self.accelerator.device)
        source = ExampleSource(system, self.tables)
        phase = FeaturePhase(source, config.training, validation_features(source, config.training))
        accuracy = self._train_router(phase, source, config, None)
        return -relative - (1 - accuracy)

    def _first_losses(self, trial: optuna.Trial, losses: Mapping[str, float]) -> Mapping[str, float]:
        """Losses of the first trial that has any; all layers are compared with them."""
        for earlier in trial.study.get_trials(deepcopy=False):
            if "losses" in earlier.user_attrs and earlier.number < trial.number:
                return earlier.user_attrs["losses"]
        return losses


def _alone(config: Config, task: str) -> Config:
    """The configuration of one task by itself."""
    raw = config.model_dump()
    for section in (raw["data"]["paths"], raw["tasks"], raw["lora_configs"]):
        for other in [name for name in section if name != task]:
            del section[other]
    raw["router"] |= {"top_k": 1, "branches": [], "branch_adapters": []}
    return type(config).model_validate(raw)


def _of_task(settings: Settings, task: str) -> Settings:
    """The settings that apply when a task is trained alone."""
    sections = ("tasks.", "lora_configs.")
    return {k: v for k, v in settings.items() if not k.startswith(sections) or k.split(".")[1] == task}


def with_scales(config: PipelineConfig, settings: Settings) -> Settings:
    """Add the alpha for every rank that the settings change, so that adapters keep their scale."""
    ranks = {task: settings.get(f"lora_configs.{task}.rank") for task in config.lora_configs}
    alphas = {
        f"lora_configs.{task}.alpha": own.alpha * own.model_copy(update={"rank": rank}).divisor / own.divisor
        for task, own in config.lora_configs.items()
        if (rank := ranks[task]) is not None
    }
    return {**settings, **alphas}
