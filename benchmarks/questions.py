"""Several questions about one text: what they cost together, and what the layer of the tap costs in quality.

    python benchmarks/questions.py results/questions.json data.root=DATA

*Cost*: one text of 64 words and 1 to 20 tasks of labels over MiniLM, asked in one call, over as many single calls, for
each tap. *Quality*: three tasks of labels are trained with their adapters above each tap, with the same steps.
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import torch
from harness import machine, race

from dynamo_mtl.config.load import DynamoConfig, load_config
from dynamo_mtl.config.system_config import SystemConfig
from dynamo_mtl.config.validation import validate
from dynamo_mtl.evaluation.benchmark import Scoreboard, load_predictor
from dynamo_mtl.evaluation.compare import train_unless_done
from dynamo_mtl.evaluation.compared_systems import ComparedSystem, choose_oracle
from dynamo_mtl.evaluation.inputs import task_examples
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.request_reader import Manner, RequestReader
from dynamo_mtl.inference.task_choice import TaskChoice
from dynamo_mtl.messages import log_to_console
from dynamo_mtl.system import build_system
from dynamo_mtl.training.stages import FOLDERS

CONFIG = Path(__file__).parents[1] / "configs" / "labels.yaml"
TASKS, STEPS = ("trec6", "sst5", "banking77"), 300
TAPS = (1, 2, 3, 4, 5)
COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20)
GOALS = {6: 0.45, 20: 0.35}
"""Number of questions → the most that they should cost, over as many single requests."""
TEXT = "the bus stop near the old market has been closed since monday and nobody knows why " * 4
CPU = torch.device("cpu")


def main() -> None:
    """Race, train, score, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("settings", nargs="*", help="as key.sub=value")
    parser.add_argument("--backbone", default="minilm")
    given = parser.parse_args()
    log_to_console(logging.INFO)
    config = load_config(CONFIG, given.settings)
    default = config.model.tap_layer
    curves = {tap: cost(tap, given.backbone) for tap in TAPS}
    result = {
        "default_tap": default,
        "cost": curves,
        "goals": {str(count): {"at_most": most, "ratio": curves[default][count]["ratio"],
                               "met": curves[default][count]["ratio"] <= most} for count, most in GOALS.items()},
        "quality": {tap: quality(config, tap) for tap in TAPS},
        "steps": STEPS,
        "machine": machine(CPU),
    }  # fmt: skip
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["goals"], indent=2))


def cost(tap: int, backbone: str) -> dict[int, dict[str, Any]]:
    """Number of questions → the time of all in one call over that of as many single calls, with tokens read in each."""
    names = [f"task_{number}" for number in range(max(COUNTS))]
    settings = {
        "data": {"paths": dict.fromkeys(names, "unused")},
        "tasks": {name: {"type": "classification", "labels": ["a", "b", "c"]} for name in names},
        "lora_configs": {name: {"rank": 16, "alpha": 32, "target_modules": "all-linear"} for name in names},
        "model": {"base_model_name": backbone, "hidden_size": 384, "tap_layer": tap},
    }
    system = build_system(validate(SystemConfig, settings, "benchmarks/questions.py"), lambda _: [], CPU)
    predictor = Predictor(system)
    reader = RequestReader(predictor)
    found: dict[int, dict[str, Any]] = {}
    for count in COUNTS:
        manner = Manner(tasks=TaskChoice(names[:count]))

        def together(manner: Manner = manner) -> object:
            return predictor.answer(reader.read(TEXT, manner).questions)

        def alone(count: int = count) -> object:
            return [predictor.answer(reader.read(TEXT, Manner(task_hint=name)).questions)[0] for name in names[:count]]

        for one, other in zip(together(), alone(), strict=True):  # pyright: ignore[reportArgumentType]
            assert abs(one.answer["probabilities"]["a"] - other.answer["probabilities"]["a"]) < 0.01
        found[count] = race(
            together, alone, CPU, target=GOALS.get(count, 1.0), at_least=False,
            what="time of all questions in one call over as many single calls",
        ).to_json()  # fmt: skip
    return found


def quality(config: DynamoConfig, tap: int) -> dict[str, float]:
    """Task → its score with adapters above a tap, each task given."""
    raw = config.model_dump()
    raw["data"]["paths"] = {name: config.data.paths[name] for name in TASKS}
    for section in ("tasks", "lora_configs"):
        raw[section] = {name: raw[section][name] for name in TASKS}
    for name in TASKS:
        raw["tasks"][name]["training"]["max_steps"] = STEPS
    raw["model"]["tap_layer"] = tap
    for place in ("checkpoint_dir", "log_dir"):
        raw[place] = str(Path(raw[place]) / f"tap{tap}")
    own = DynamoConfig.model_validate(raw)
    folder = Path(own.checkpoint_dir) / FOLDERS[1]
    train_unless_done(own, folder, (1,))
    predictor = load_predictor(folder, CPU, own)
    system, seed = predictor.system, own.training.seed
    board = Scoreboard({name: task_examples(system, name, "validation", seed) for name in system.tasks})
    board.add("oracle", ComparedSystem(predictor, choose_oracle))
    return {name: board.scores["oracle"][name][task.main_metric] for name, task in system.tasks.items()}


if __name__ == "__main__":
    main()
