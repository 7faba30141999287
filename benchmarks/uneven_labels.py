"""What weights of labels and smoothing do where labels are rare, or wrong: two public tasks, made so.

    python benchmarks/uneven_labels.py results/uneven_labels.json data.root=DATA

*Rare*: the commonest label keeps its rows, the rarest a fiftieth as many, the others lie between on a geometric scale
(the long tail of Cui et al. 2019, arXiv 1901.05555, section 5.1). *Wrong*: a fifth of the labels are replaced by
another one at random. The validation data is as it was.
"""

import argparse
import gzip
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import machine

from dynamo_mtl.checkpoint.metadata import read_metadata
from dynamo_mtl.config.load import DynamoConfig, load_config
from dynamo_mtl.evaluation.benchmark import Scoreboard, load_predictor
from dynamo_mtl.evaluation.compare import train_unless_done
from dynamo_mtl.evaluation.compared_systems import ComparedSystem, choose_oracle
from dynamo_mtl.evaluation.confidence import score_confidence
from dynamo_mtl.evaluation.inputs import task_examples
from dynamo_mtl.messages import log_to_console
from dynamo_mtl.training.stages import FOLDERS

CONFIG = Path(__file__).parents[1] / "configs" / "labels.yaml"
TASKS = ("sst5", "trec6")
RATIO, WRONG = 50, 0.2
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"label_smoothing": 0.0},
    "weights": {"label_smoothing": 0.0, "class_weights": "balanced"},
    "smoothing": {"label_smoothing": 0.2},
}
STEPS = 300
CPU = torch.device("cpu")


def rare(rows: list[dict[str, Any]], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Rows with a long tail of labels."""
    order = [label for label, _ in Counter(row["label"] for row in rows).most_common()]
    most = Counter(row["label"] for row in rows)[order[0]]
    kept: list[dict[str, Any]] = []
    for rank, label in enumerate(order):
        own = [row for row in rows if row["label"] == label]
        count = min(len(own), round(most * RATIO ** (-rank / (len(order) - 1))))
        kept += [own[place] for place in sorted(rng.permutation(len(own))[:count])]
    return kept


def wrong(rows: list[dict[str, Any]], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Rows of which a share has another label."""
    labels = sorted({row["label"] for row in rows})
    changed: list[dict[str, Any]] = []
    for row in rows:
        others = [label for label in labels if label != row["label"]]
        label = others[int(rng.integers(len(others)))] if rng.random() < WRONG else row["label"]
        changed.append({**row, "label": label})
    return changed


def main() -> None:
    """Make the data, train an adapter for each way, and write the scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("settings", nargs="*", help="as key.sub=value")
    given = parser.parse_args()
    log_to_console(logging.INFO)
    config = changed(load_config(CONFIG, given.settings))
    folder = Path(config.checkpoint_dir) / FOLDERS[1]
    train_unless_done(config, folder, (1,))
    predictor = load_predictor(folder, CPU, config)
    system, seed = predictor.system, config.training.seed
    board = Scoreboard({name: task_examples(system, name, "validation", seed) for name in system.tasks})
    board.add("oracle", ComparedSystem(predictor, choose_oracle))
    confidence = score_confidence(system, config, "validation", seed, list(system.tasks))
    metadata = read_metadata(folder)
    found: dict[str, Any] = {}
    for name, scores in board.scores["oracle"].items():
        task, made, way = name.split("_")
        own = {"macro_f1": scores["f1"], "accuracy": scores["accuracy"], "n": scores["n"],
               "training_examples": metadata.dataset_sizes[name],
               "ece_before": confidence[name]["ece_before"], "ece_after": confidence[name]["ece_after"]}  # fmt: skip
        found.setdefault(task, {}).setdefault(made, {})[way] = own
        print(f"{name:24s} macro F1 {scores['f1']:.3f}  accuracy {scores['accuracy']:.3f}")
    about = {"tasks": found, "ratio": RATIO, "wrong": WRONG, "steps": STEPS, "minutes": metadata.train_seconds / 60,
             "commit": metadata.commit, "machine": machine(CPU)}  # fmt: skip
    given.output.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def changed(config: DynamoConfig) -> DynamoConfig:
    """A configuration with a task for each task, each way its data is made, and each way it is trained."""
    raw = config.model_dump()
    place = Path(config.checkpoint_dir) / "uneven"
    tasks, loras = {}, {}
    for task in TASKS:
        source = Path(config.data.root or ".") / config.data.paths[task]
        with gzip.open(source / "train.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        for make in (rare, wrong):
            path = place / f"{task}_{make.__name__}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            made = make(rows, np.random.default_rng(config.training.seed))
            path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
            for way, settings in WAYS.items():
                name = f"{task}_{make.__name__}_{way}"
                files = {"train_file": str(path.absolute()),
                         "validation_file": str((source / "validation.jsonl.gz").absolute())}  # fmt: skip
                own = raw["tasks"][task]
                tasks[name] = {**own, **settings, **files, "training": {**own["training"], "max_steps": STEPS}}
                loras[name] = raw["lora_configs"][task]
    raw["data"]["paths"] = {}
    return DynamoConfig.model_validate(
        {**raw, "tasks": tasks, "lora_configs": loras, "checkpoint_dir": str(place), "log_dir": str(place / "logs")}
    )


if __name__ == "__main__":
    main()
