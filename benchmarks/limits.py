"""Where a trained model loses: its scores on parts of the validation data that differ in what they ask for.

    python benchmarks/limits.py --data PATH --checkpoints FOLDER

Scores the adapters of the phase 1 in FOLDER, each with its own task, and writes ``results/experiments/limits.json``.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from experiments import CODE, CONFIG, GERMAN, NEWS, QA, REVIEWS, ROOT
from harness import machine

from dynamo_mtl.config import load_config
from dynamo_mtl.evaluation.inputs import task_examples, task_input
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.scoring import predict_examples
from dynamo_mtl.system import System, load_system
from dynamo_mtl.tasks.copying import units
from dynamo_mtl.tasks.tables import TRAIN
from dynamo_mtl.tasks.task import Example

LONGEST = 5
SETTINGS = (
    f"tasks.{QA}.validation_file=qa/squad11_dev_12articles.jsonl.gz",
    f"tasks.{NEWS}.validation_examples=500",
)


def parts(system: System, task: str, rows: list[Example], training: list[Example]) -> dict[str, list[int]]:
    """Names of parts of a task's examples, and which examples each has."""
    words = [len(row.text.split()) for row in rows]
    everything = list(range(len(rows)))
    if task == REVIEWS:
        return {
            "up to 10 words": [i for i in everything if words[i] <= 10],
            "11 to 20 words": [i for i in everything if 10 < words[i] <= 20],
            "more than 20 words": [i for i in everything if words[i] > 20],
        }
    if task == QA:
        short = [len(json.loads(row.target)[0][0].split()) <= 3 for row in rows]
        return {
            "answers of up to 3 words": [i for i in everything if short[i]],
            "longer answers": [i for i in everything if not short[i]],
        }
    if task == NEWS:
        fits = [len(system.source.encode(row.text, None, None).windows) == 1 for row in rows]
        return {
            "texts that fit into one window": [i for i in everything if fits[i]],
            "texts of which the end is not read": [i for i in everything if not fits[i]],
        }
    seen = {word for row in training for word in _words(row.target)}
    known = [_words(row.target) <= seen | (_words(row.text) if task == CODE else set()) for row in rows]
    found = {
        "every word is in a training target or in the source" if task == CODE else
        "every word is in a training target": [i for i in everything if known[i]],
        "some word is not": [i for i in everything if not known[i]],
    }  # fmt: skip
    if task == GERMAN:
        return found
    by_length = sorted(everything, key=lambda i: -len(rows[i].target))
    return {
        **found,
        f"the {LONGEST} longest programs": sorted(by_length[:LONGEST]),
        f"all but the {LONGEST} longest": sorted(by_length[LONGEST:]),
    }


def _words(text: str) -> set[str]:
    return {unit[0] for unit in units(text)}


def main() -> None:
    """Parse the command line, answer, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder that data.root names")
    parser.add_argument("--checkpoints", type=Path, required=True, help="a run's folder with its phases")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = load_config(CONFIG, [f"data.root={chosen.data}", *SETTINGS])
    system, metadata = load_system(chosen.checkpoints / "phase_1", torch.device("cpu"), config)
    predictor = Predictor(system, metadata.calibration)
    found: dict[str, Any] = {}
    for name, task in system.tasks.items():
        rows = task_examples(system, name, "validation", metadata.seed)
        training = task_examples(system, name, TRAIN, metadata.seed)
        inputs = [task_input(system, name, row) for row in rows]
        answers = [p.answer for p in predict_examples(predictor, inputs, [name] * len(inputs), None, name)]
        lengths = [len(re.findall(r"\w+|[^\w\s]", row.target)) for row in rows]

        def scored(chosen: Iterable[int], task: Any = task, rows: Any = rows, answers: Any = answers) -> dict[str, Any]:
            return task.score([answers[i] for i in chosen], [rows[i] for i in chosen])

        whole = {"all": list(range(len(rows))), **parts(system, name, rows, training)}
        found[name] = {
            part: {
                "n": len(members),
                "share_of_target_tokens": sum(lengths[i] for i in members) / sum(lengths),
                "scores": scored(members),
            }
            for part, members in whole.items()
            if members
        }
    content = {"tasks": found, "commit": metadata.commit, "machine": machine(torch.device("cpu"))}
    path = ROOT / "results" / "experiments" / "limits.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
