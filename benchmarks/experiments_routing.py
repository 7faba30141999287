"""What phase 3, each term of the objective and smoothing change, from the checkpoints of a finished run.

    python benchmarks/experiments_routing.py terms|smoothing|joint --data PATH --checkpoints FOLDER [--config FILE]

``terms`` trains the router of phase 2 anew on cached features, without one term at a time, and ``smoothing`` with more
or less of that term; ``joint`` goes on from phase 2 with variants of phase 3, and notes where each ends, not the best
state on the way. Every variant is trained with the same seeds. All read the validation values of training itself:
routing of held-out inputs, and losses of tasks under the router's own choice. Writes
``results/experiments/QUESTION.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from experiments import CONFIG, ROOT, places
from harness import machine

from dynamo_mtl.config import DynamoConfig, load_config
from dynamo_mtl.data.mixture import MixedOrder
from dynamo_mtl.model.router import Router
from dynamo_mtl.router_inputs import InputKind
from dynamo_mtl.system import load_system
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.loop import run_phase
from dynamo_mtl.training.metrics_log import MetricsLog
from dynamo_mtl.training.objective import Objective
from dynamo_mtl.training.optimizer import router_group
from dynamo_mtl.training.phases.phase_2_router import FeaturePhase, validation_features
from dynamo_mtl.training.provenance import source_revision
from dynamo_mtl.training.run import load_tables, train

SEEDS = (0, 1, 2)
TERMS = {"load_balance": 0.1, "efficiency": 0.01, "consistency": 0.1, "z_loss": 0.001}
"""Weights of those beside the routing loss; ``temperature`` is 0 unless the temperature is learned."""


def weights(**changed: float) -> tuple[str, ...]:
    """Overrides for all of them, and for no smoothing, but for what is changed."""
    chosen = {"smoothing": 0.0, **TERMS, **changed}
    return tuple(f"training.{term}_weight={weight}" for term, weight in chosen.items())


WITH_TERMS = weights()
WITHOUT_TERMS = weights(**dict.fromkeys(TERMS, 0.0))
SMALL = ("training.router.examples_per_task=6000", "training.router.feature_epochs=2")
"""A router in a quarter of a minute, so that every term can be left out with several seeds."""
CLOSE = (*SMALL, "training.eval_examples=1000")
"""The same, measured on more inputs, for differences of a few of a thousand."""
PHASE_3 = (
    "training.joint.max_steps=60",
    "training.joint.examples_per_task=500",
    "training.joint.lr_factor=0.05",
    "training.joint.initial_competence=0.8",
)
"""The phase, which ``configs/minilm.yaml`` leaves out."""
JOINT_VARIANTS: dict[str, tuple[str, ...]] = {
    "all terms": WITH_TERMS,
    "routing and task loss alone": WITHOUT_TERMS,
    "no curriculum": (*WITH_TERMS, "training.joint.initial_competence=1.0"),
}
TERM_VARIANTS: dict[str, tuple[str, ...]] = {
    "all terms": WITH_TERMS,
    **{f"without {term}": weights(**{term: 0.0}) for term in TERMS},
    "routing loss alone": WITHOUT_TERMS,
}
SMOOTHING_VARIANTS: dict[str, tuple[str, ...]] = {
    "none": ("training.smoothing_weight=0.0",),
    "0.1": ("training.smoothing_weight=0.11",),
    "0.2": ("training.smoothing_weight=0.25",),
}
"""Label smoothing ε → its term's weight ε / (1 - ε)."""
ROUTER_VARIANTS = {"terms": TERM_VARIANTS, "smoothing": SMOOTHING_VARIANTS}
"""By question, those that train the router of phase 2 anew."""
BASES = {"terms": SMALL, "smoothing": CLOSE, "joint": PHASE_3}
"""By question, what all its variants share."""


def validations(log: Path) -> list[dict[str, float]]:
    """The validation values of a run by step, without their prefix."""
    records = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    return [
        {name.removeprefix("validation_"): value for name, value in record.items() if name != "phase"}
        for record in records
        if "validation_score" in record
    ]


def joint_runs(config_file: Path, checkpoints: Path, place: Path, data: str, write: Callable[..., None]) -> None:
    """Phase 3 by variant and seed: validation before it and after its last step."""
    for variant, overrides in JOINT_VARIANTS.items():
        for seed in SEEDS:
            shutil.rmtree(place, ignore_errors=True)
            config = load_config(config_file, [*PHASE_3, *overrides, f"training.seed={seed}", *places(place, data)])
            shutil.copytree(checkpoints / "phase_2", place / "checkpoints" / "phase_2")
            train(config, [3])
            found = validations(place / "logs" / "metrics.jsonl")
            write(variant, overrides, seed, {"before": found[0], "after": found[-1]})


def router_runs(
    question: str, config_file: Path, checkpoints: Path, place: Path, data: str, write: Callable[..., None]
) -> None:
    """The router on cached features by variant and seed: validation in its best state, which is the one kept."""
    shutil.rmtree(place, ignore_errors=True)
    common = BASES[question]
    base = load_config(config_file, [*common, *places(place, data)])
    system, _ = load_system(checkpoints / "phase_1", torch.device("cpu"), base, with_router=False, for_training=True)
    source = ExampleSource(system, load_tables(base, system.tasks))
    held_out = validation_features(source, base.training)
    cached = FeaturePhase(source, base.training, held_out)
    for variant, overrides in ROUTER_VARIANTS[question].items():
        for seed in SEEDS:
            config = load_config(config_file, [*common, *overrides, *places(place / variant / str(seed), data)])
            write(variant, overrides, seed, {"after": train_router(cached, source, config, seed)})


def train_router(cached: FeaturePhase, source: ExampleSource, config: DynamoConfig, seed: int) -> dict[str, float]:
    """Train on features that are there, from a router drawn with ``seed``, in the order of ``seed``."""
    torch.manual_seed(seed)
    model = source.system.model
    model.router = Router(config.router, model.router.feature_size, len(source.system.tasks))
    phase = copy.copy(cached)
    phase.config, phase.objective = config.training, Objective(config.training)
    phase.groups = [router_group(model, config.training.router_lr, config.training)]
    data, batch_size = config.data, config.training.router.feature_batch_size
    sizes = tuple(map(len, phase.rows))
    phase.order = MixedOrder(sizes, batch_size, phase.order.steps_per_epoch, data.sampling_exponent, seed)
    accelerator = Accelerator(cpu=True)
    log = MetricsLog(Path(config.log_dir), accelerator)
    run_phase(phase, source.system, config.training, 0, accelerator, log)
    log.close()
    values = phase.validate()
    features, routes = phase.held_out[InputKind.PLAIN]
    with torch.no_grad():
        right = (model.router(features).weights.argmax(dim=1) == routes).float()
    for task in source.system.tasks:
        own = right[routes == source.system.route_of(task)]
        if len(own):  # none where a task requires an instruction
            values[f"accuracy_bare_{task}"] = float(own.mean())
    return values


def main() -> None:
    """Parse the command line, train, write after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=list(BASES))
    parser.add_argument("--data", required=True, help="the folder that data.root names")
    parser.add_argument("--checkpoints", type=Path, required=True, help="a run's folder with its phases")
    parser.add_argument("--config", type=Path, default=CONFIG, help="that the run was trained with")
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"))
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path = ROOT / "results" / "experiments" / f"{chosen.question}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    variants: dict[str, Any] = {}
    began = time.perf_counter()

    def write(variant: str, overrides: tuple[str, ...], seed: int, found: dict[str, Any]) -> None:
        nonlocal began
        entry = variants.setdefault(variant, {"overrides": list(overrides), "seeds": {}})
        entry["seeds"][seed] = {**found, "seconds": time.perf_counter() - began}
        began = time.perf_counter()
        content = {
            "config": chosen.config.name,
            "base": list(BASES[chosen.question]),
            "variants": variants,
            "commit": source_revision(),
            "machine": machine(torch.device("cpu")),
        }
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(variant, seed, json.dumps(found), flush=True)

    places_and_data = chosen.config, chosen.checkpoints, chosen.work / chosen.question, chosen.data
    if chosen.question == "joint":
        joint_runs(*places_and_data, write)
    else:
        router_runs(chosen.question, *places_and_data, write)


if __name__ == "__main__":
    main()
