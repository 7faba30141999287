"""Train an adapter for each of many tasks with labels of every kind, and score them beside full fine-tuning.

    python benchmarks/labels.py results/labels.json data.root=DATA
    python benchmarks/labels.py results/labels.json data.root=DATA checkpoint_dir=FOLDER --only trec6,stsb --update
    python benchmarks/labels.py results/labels.json data.root=DATA --trained FOLDER --full none --update

An interrupted run goes on where it was, and what was trained with the same settings is not trained again. ``--update``
keeps what the file says of other tasks, and of full fine-tuning where that is not measured again; each task says of
which commit it is, and which settings it had.
"""

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from harness import machine

from dynamo_mtl.checkpoint.metadata import read_metadata
from dynamo_mtl.config.identity import settings_of
from dynamo_mtl.config.load import PLACES, DynamoConfig, load_config
from dynamo_mtl.config.overrides import with_settings
from dynamo_mtl.evaluation.benchmark import Scoreboard, load_predictor
from dynamo_mtl.evaluation.compare import train_baseline, train_unless_done
from dynamo_mtl.evaluation.compared_systems import ComparedSystem, choose_oracle
from dynamo_mtl.evaluation.confidence import score_confidence
from dynamo_mtl.messages import log_to_console
from dynamo_mtl.system import System
from dynamo_mtl.tasks.tables import all_examples, open_task_table
from dynamo_mtl.tasks.task import Example
from dynamo_mtl.training.examples import split_validation
from dynamo_mtl.training.stages import FOLDERS

CONFIG = Path(__file__).parents[1] / "configs" / "labels.yaml"
FULL = ("rte", "mrpc", "stsb", "nlupp_banking", "trec6", "sst5", "wnut17", "pos_gum", "subjqa_electronics", "copa")
"""Tasks whose backbone is also fine-tuned in full: one or more of each type."""
OF_FULL = ("full_finetuning", "full_minutes", "learning_rates")
"""What ``fine_tuned`` measures."""
CPU = torch.device("cpu")


def main() -> None:
    """Train what is missing, score, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("settings", nargs="*", help="as key.sub=value")
    parser.add_argument("--only", help="train and score only these tasks, such as trec6,stsb")
    parser.add_argument("--update", action="store_true", help="keep the other tasks of the file")
    parser.add_argument("--full", default=",".join(FULL), help="tasks whose backbone is also fine-tuned in full")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--trained", type=Path, help="score the adapters of this checkpoint instead of training some")
    given = parser.parse_args()
    log_to_console(logging.INFO)
    if given.trained is None:
        config = load_config(given.config, given.settings)
    else:
        config = load_config(given.trained / "config.yaml", [*PLACES, *given.settings])
    if given.only:
        config = only(config, given.only.split(","))
    folder = given.trained or Path(config.checkpoint_dir) / FOLDERS[1]
    if given.trained is None:
        train_unless_done(config, folder, (1,))
    tasks = scored(config, folder)
    for name in given.full.split(","):
        if name in tasks:
            tasks[name] |= fine_tuned(config, name)
    metadata, all_settings = read_metadata(folder), settings_of(config)
    for name, own in tasks.items():
        own["commit"] = metadata.commit
        own["settings"] = {section: all_settings[section][name] for section in ("tasks", "lora_configs")}
    before: dict[str, Any] = {}
    if given.update and given.output.exists():
        before = json.loads(given.output.read_text(encoding="utf-8"))
        for name, own in before["tasks"].items():
            if "commit" not in own:
                own["commit"] = before["commit"]
                own["settings"] = {section: before["settings"][section][name] for section in ("tasks", "lora_configs")}
            # Full fine-tuning does not depend on the settings of an adapter, so what was measured of it stays.
            tasks[name] = {**{key: own[key] for key in OF_FULL if key in own}, **tasks[name]} if name in tasks else own
    ratios = [own["adapter"] / own["full_finetuning"] for own in tasks.values() if "full_finetuning" in own]
    result = {
        "tasks": tasks,
        "mean_ratio": sum(ratios) / len(ratios) if ratios else None,
        "minutes": before.get("minutes", 0.0) + (0 if given.trained else metadata.train_seconds / 60),
        "backbone": metadata.backbone,
        "commit": metadata.commit,
        "machine": machine(CPU),
        "settings": before.get("settings", all_settings),
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, own in tasks.items():
        shown = "  ".join(f"{key} {own[key]:.4g}" for key in ("trivial", "adapter", "full_finetuning") if key in own)
        print(f"{name:20s} {own['metric']:10s} {shown}")
    print(f"mean of adapter / full fine-tuning: {result['mean_ratio']}")


def only(config: DynamoConfig, names: list[str]) -> DynamoConfig:
    """The configuration of some of its tasks."""
    raw = config.model_dump()
    raw["data"]["paths"] = {name: config.data.paths[name] for name in names}
    for section in ("tasks", "lora_configs"):
        raw[section] = {name: raw[section][name] for name in names}
    return DynamoConfig.model_validate(raw)


def scored(config: DynamoConfig, folder: Path) -> dict[str, dict[str, Any]]:
    """Scores of the adapters on validation data, each task given, with those of the trivial systems."""
    predictor = load_predictor(folder, CPU, config)
    system, seed = predictor.system, config.training.seed
    board = Scoreboard({name: held_out(system, name, config) for name in system.tasks})
    board.add_trivial(system, seed)
    board.add("oracle", ComparedSystem(predictor, choose_oracle))
    confidence = score_confidence(system, config, "validation", seed, list(system.tasks))
    found: dict[str, dict[str, Any]] = {}
    for name, task in system.tasks.items():
        metric, measured = task.main_metric, confidence.get(name, {})
        found[name] = {
            "type": task.type,
            "metric": metric,
            "adapter": board.scores["oracle"][name][metric],
            "interval": board.intervals["oracle"][name],
            "trivial": board.scores["trivial"][name][metric],
            "ece_before": measured.get("ece_before"),
            "ece_after": measured.get("ece_after"),
            "ece_chance": measured.get("ece_chance"),
            "ece_labels": measured.get("n"),
            "n": len(board.examples[name]),
            "scores": board.scores["oracle"][name],
            "calibration": asdict(task.calibration),
        }
    return found


def held_out(system: System, name: str, config: DynamoConfig) -> list[Example]:
    """All validation rows of a task; of one whose thresholds were fitted on half of them, the other half."""
    table = open_task_table(system.tasks[name], "validation", config.data, config.training.seed)
    has_thresholds = bool(system.tasks[name].calibration.thresholds)
    return list(all_examples(split_validation(system.tasks[name], table)[0] if has_thresholds else table))


def fine_tuned(config: DynamoConfig, name: str) -> dict[str, Any]:
    """Scores of the whole backbone fine-tuned for one task, with as many steps, at the best of a few learning rates."""
    own = with_settings(only(config, [name]), {"checkpoint_dir": str(Path(config.checkpoint_dir) / "full" / name)})
    folder, rates = train_baseline(own, own.compare, "full_finetuning")
    predictor = load_predictor(folder, CPU)
    board = Scoreboard({name: held_out(predictor.system, name, config)})
    board.add("full_finetuning", ComparedSystem(predictor, choose_oracle))
    scores = board.scores["full_finetuning"][name]
    return {
        "full_finetuning": scores[predictor.system.tasks[name].main_metric],
        "full_minutes": read_metadata(folder).train_seconds / 60,
        "learning_rates": rates,
    }


if __name__ == "__main__":
    main()
