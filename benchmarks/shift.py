"""How a router does on inputs from elsewhere, and what each view and the general texts give.

    python benchmarks/shift.py results/shift.json --data DATA
    python benchmarks/shift.py results/shift.json --data DATA --only views

The router of ``configs/minilm.yaml`` is trained on features, as phase 2 begins; adapters play no part. ``views`` trains
smaller ones with one view at a time, all but one, all, and none, with three seeds each. A run that is repeated with
``--only`` keeps the other half of the file.
"""

import argparse
import json
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from experiments import CONFIG
from experiments_routing import SEEDS, train_router
from harness import machine

from dynamo_mtl.config import DynamoConfig, load_config
from dynamo_mtl.data.data_config import VIEWS
from dynamo_mtl.evaluation.inputs import make_routed_inputs, task_examples
from dynamo_mtl.evaluation.routing_scores import score_kinds
from dynamo_mtl.evaluation.shift import everyday_inputs, score_shift, shift_sets
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.messages import log_to_console
from dynamo_mtl.router_inputs import InputKind
from dynamo_mtl.system import System, build_system
from dynamo_mtl.tasks.encoding import EncodedExample
from dynamo_mtl.tasks.registry import make_tasks
from dynamo_mtl.tasks.tables import all_examples
from dynamo_mtl.tasks.task import Example
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.phases import phase_2_router
from dynamo_mtl.training.phases.phase_2_router import FeaturePhase, calibrate, validation_features
from dynamo_mtl.training.provenance import source_revision
from dynamo_mtl.training.router_memory import collect_router_memory, trunk_features
from dynamo_mtl.training.run import load_tables

SETS = {
    "sentiment": ["many/amazon_books", "many/amazon_electronics", "many/amazon_kitchen", "many/cr",
                  "many/airline_tweets"],
    "qa": ["many/subjqa_electronics", "many/subjqa_restaurants", "many/tweetqa", "many/qamr"],
    "summarization": ["summarization/xsum_sample_200.jsonl.gz"],
    "code_generation": ["code_generation/conala/train.jsonl.gz", "code_generation/mbpp", "code_generation/pydoc"],
}  # fmt: skip
"""Task → inputs of it that no training reads."""
SMALL = ("training.router.examples_per_task=1500", "training.router.tokens_per_task=400000",
         "training.router.feature_epochs=6", "training.eval_examples=300")  # fmt: skip
"""A router in a minute, for variants."""
GENERAL = "general texts"
CPU = torch.device("cpu")


def main() -> None:
    """Train, score, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("settings", nargs="*", help="as key.sub=value")
    parser.add_argument("--data", required=True, help="the folder that data.root names")
    parser.add_argument("--only", choices=("router", "views"), help="measure one half, and keep the other")
    parser.add_argument("--work", type=Path, default=Path("runs/shift"))
    given = parser.parse_args()
    log_to_console(logging.INFO)
    sets = [f"tasks.{task}.shift_files=[{', '.join(files)}]" for task, files in SETS.items()]
    places = [f"data.root={given.data}", f"log_dir={given.work / 'logs'}"]
    settings = [*places, *sets, *given.settings]
    result: dict[str, Any] = json.loads(given.output.read_text(encoding="utf-8")) if given.output.exists() else {}
    if given.only != "views":
        result |= of_router(load_config(CONFIG, settings))
    if given.only != "router":
        result["views"] = of_views(settings)
    result |= {"commit": source_revision(), "machine": machine(CPU)}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def prepared(config: DynamoConfig) -> ExampleSource:
    """A fresh system with the data of a configuration."""
    set_seed(config.training.seed)
    tables = load_tables(config, make_tasks(config.tasks))
    system = build_system(config, lambda task: all_examples(tables[task.name].train), CPU)
    return ExampleSource(system, tables).study()


def scored(source: ExampleSource, config: DynamoConfig) -> dict[str, Any]:
    """Fit what follows from the trained router, and score it on inputs from elsewhere and on validation rows."""
    system, settings = source.system, config.training
    system.model.ood = collect_router_memory(source, settings).fit(settings.seed)
    predictor = Predictor(system, calibrate(system, validation_features(source, settings)))
    rows = {name: task_examples(system, name, "validation", settings.seed) for name in system.tasks}
    routing = score_kinds(predictor, make_routed_inputs(system, rows, settings.seed))
    plain = routing[InputKind.PLAIN]
    return {
        **score_shift(predictor, shift_sets(system, config.data)),
        "in_distribution": {"macro": plain["macro"], "worst": plain["worst_task"], "rejected": plain["rejected"]},
        "kinds": {kind: routing[kind]["accuracy"] for kind in InputKind if kind in routing},
    }


def of_router(config: DynamoConfig) -> dict[str, Any]:
    """Scores of the router that the configuration describes."""
    source = prepared(config)
    phase = FeaturePhase(source, config.training, validation_features(source, config.training))
    train_router(phase, source, config, config.training.seed)
    return scored(source, config)


def of_views(settings: Sequence[str]) -> dict[str, Any]:
    """Variant → mean scores over seeds, with their standard deviations."""
    base = load_config(CONFIG, [*SMALL, *settings])
    source = prepared(base)
    remembered = Remembered()
    phase_2_router.trunk_features = remembered
    sets, everyday = shift_sets(source.system, base.data), everyday_inputs(source.system)
    judged = {name: plain_features(source.system, task, rows, base) for name, (task, rows) in sets.items()}
    of_everyday = [plain_features(source.system, task, rows, base) for task, rows in everyday.items()]
    general = base.training.router.general_texts
    variants: dict[str, tuple[Sequence[str], int]] = {
        "nothing": ((), 0),
        GENERAL: ((), general),
        "all views": (VIEWS, 0),
        "all views and general texts": (VIEWS, general),
        **{f"only {view}": ((view,), 0) for view in VIEWS},
        **{f"all without {view}": ([one for one in VIEWS if one != view], general) for view in VIEWS},
    }
    found: dict[str, Any] = {}
    for name, (views, texts) in variants.items():
        chosen = [f"data.views=[{', '.join(views)}]", f"training.router.general_texts={texts}"]
        config = load_config(CONFIG, [*SMALL, *settings, *chosen])
        source.system.config = config
        own = ExampleSource(source.system, load_tables(config, source.system.tasks))
        phase = FeaturePhase(own, config.training, validation_features(own, config.training))
        runs = []
        for seed in SEEDS:
            train_router(phase, own, config, seed)
            of_sets = [right(own.system, *features) for features in judged.values()]
            plain, routes = phase.held_out[InputKind.PLAIN]
            of_tasks = [right(own.system, plain[routes == route], route) for route in range(len(own.system.tasks))]
            instructed, instructed_routes = phase.held_out[InputKind.INSTRUCTED]
            runs.append({
                "mean_right": statistics.mean(of_sets),
                "worst_right": min(of_sets),
                "everyday": statistics.mean(right(own.system, *features) for features in of_everyday),
                "macro": statistics.mean(of_tasks),
                "instructed": right(own.system, instructed, instructed_routes),
            })  # fmt: skip
        found[name] = {
            key: {"mean": statistics.mean(run[key] for run in runs), "std": statistics.stdev(run[key] for run in runs)}
            for key in runs[0]
        }
        print(name, json.dumps(found[name]), flush=True)
    return found


def plain_features(
    system: System, task: str, rows: Sequence[Example], config: DynamoConfig
) -> tuple[torch.Tensor, int]:
    """Router features of inputs as they are, and the adapter of their task."""
    encoded = [system.encode_for_router(row.text, row.context, None, task) for row in rows]
    return trunk_features(system, encoded, config.training.token_budget)[0], system.route_of(task)


@torch.no_grad()
def right(system: System, features: torch.Tensor, routes: torch.Tensor | int) -> float:
    """Share of inputs that the router sends to their adapters."""
    system.model.router.eval()
    return float((system.model.router(features).logits.argmax(dim=1) == routes).float().mean())


class Remembered:
    """Trunk features, of which those are kept that were computed before: variants share most inputs."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._known: dict[tuple[tuple[int, ...], ...], torch.Tensor] = {}

    def __call__(
        self, system: System, examples: list[EncodedExample], budget: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """In the place of ``trunk_features``."""
        keys = [tuple(tuple(window) for window in example.windows) for example in examples]
        missing = {key: example for key, example in zip(keys, examples, strict=True) if key not in self._known}
        if missing:
            features, _ = trunk_features(system, list(missing.values()), budget)
            self._known.update(zip(missing, features.half(), strict=True))
        return torch.stack([self._known[key] for key in keys]).float(), torch.tensor([e.route for e in examples])


if __name__ == "__main__":
    main()
