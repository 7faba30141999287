"""Small experiments at equal budgets that chose the recipes of ``configs/minilm.yaml``.

    python benchmarks/experiments.py QUESTION [VARIANT …] --data PATH [--work runs/experiments]

Each variant trains phase 1 of one task and scores its adapter, told the task; all variants of a question have the same
number of updates. Writes ``results/experiments/QUESTION.json``; variants that are there and not named are kept.
``docs/experiments.md`` shows the files, and says what was concluded.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import machine

from dynamo_mtl.config import DynamoConfig
from dynamo_mtl.data.sources import DATA_PATH
from dynamo_mtl.evaluation.benchmark import evaluate_checkpoint
from dynamo_mtl.settings import read_settings, validate
from dynamo_mtl.training.pipeline import train

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "minilm.yaml"


@dataclass(frozen=True)
class Question:
    """One thing that is varied."""

    task: str
    asks: str
    base: tuple[str, ...]
    """Overrides of ``configs/minilm.yaml`` that all variants share."""
    variants: dict[str, tuple[str, ...]]
    """Name → further overrides. The first is what the others are compared with."""


def _own(task: str, *settings: str) -> tuple[str, ...]:
    return tuple(f"tasks.{task}.{setting}" for setting in settings)


CODE, QA, REVIEWS, NEWS, GERMAN = "code_generation", "qa", "sentiment", "summarization", "translation"
QUESTIONS = {
    "copying": Question(
        CODE, "Does it pay to copy words of the description, and how large should the vocabulary beside them be?",
        _own(CODE, "training.max_steps=1000"),
        {
            "spelled, 8,000": _own(CODE, "copy_words=false", "target_vocabulary=8000"),
            "copied, 8,000": _own(CODE, "copy_words=true", "target_vocabulary=8000"),
            "copied, 2,000": _own(CODE, "copy_words=true", "target_vocabulary=2000"),
        },
    ),
    "translation": Question(
        GERMAN, "Which adapter and which learning rates?",
        _own(GERMAN, "training.max_steps=350", "generation.num_beams=1"),
        {
            "as it was": (),
            "LoRA+ 4": ("training.loraplus_ratio=4.0",),
            "learning rates 4e-3": _own(GERMAN, "training.lora_lr=4e-3", "training.head_lr=4e-3"),
            "rank 64": ("lora_configs.translation.rank=64", "lora_configs.translation.alpha=128"),
            "tap 0": ("model.tap_layer=0",),
            "smoothing 0.1": _own(GERMAN, "label_smoothing=0.1"),
        },
    ),
    "questions": Question(
        QA, "Which adapter and which learning rates?",
        _own(QA, "training.max_steps=700", "validation_file=qa/squad11_dev_12articles.jsonl.gz"),
        {
            "as it was": (),
            "LoRA+ 4": ("training.loraplus_ratio=4.0",),
            "learning rate 2e-3": _own(QA, "training.lora_lr=2e-3"),
            "rank 64": ("lora_configs.qa.rank=64", "lora_configs.qa.alpha=128"),
            "tap 0": ("model.tap_layer=0",),
        },
    ),
    "reviews": Question(
        REVIEWS, "Which learning rate, and how long?",
        (),
        {
            "as it was": (),
            "learning rate 5e-4": _own(REVIEWS, "training.lora_lr=5e-4"),
            "LoRA+ 4": ("training.loraplus_ratio=4.0",),
            "rank 32": ("lora_configs.sentiment.rank=32", "lora_configs.sentiment.alpha=64"),
            "tap 0": ("model.tap_layer=0",),
            "6,000 steps": _own(REVIEWS, "training.max_steps=6000"),
        },
    ),
}  # fmt: skip


def alone(task: str, overrides: tuple[str, ...], place: Path, data: str) -> DynamoConfig:
    """The configuration of one task by itself, that writes under ``place``."""
    places = (f"data.root={data}", f"checkpoint_dir={place / 'checkpoints'}", f"log_dir={place / 'logs'}")
    raw: dict[str, Any] = read_settings(CONFIG, [*overrides, *places])
    raw["data"] = {k: v for k, v in raw["data"].items() if not k.endswith(DATA_PATH) or k == f"{task}{DATA_PATH}"}
    for section in ("tasks", "lora_configs"):
        raw[section] = {name: own for name, own in raw[section].items() if name == task}
    return validate(DynamoConfig, raw, str(CONFIG))


def answer(question: Question, variant: str, place: Path, data: str) -> dict[str, Any]:
    """Train and score one variant."""
    config = alone(question.task, question.base + question.variants[variant], place, data)
    shutil.rmtree(place, ignore_errors=True)
    began = time.perf_counter()
    folder = train(config, [1])
    result = evaluate_checkpoint(folder, config, "validation", ["oracle"])
    seconds = time.perf_counter() - began
    return {
        "overrides": list(question.variants[variant]),
        "scores": result.systems["oracle"][question.task],
        "interval": result.intervals["oracle"][question.task],
        "train_seconds": result.train_seconds,
        "seconds": seconds,
        "commit": result.commit,
        "seed": result.seed,
    }


def main() -> None:
    """Parse the command line, train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("variants", nargs="*", help="all if none is named")
    parser.add_argument("--data", required=True, help="the folder that data.root names")
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"))
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    question = QUESTIONS[chosen.question]
    path = ROOT / "results" / "experiments" / f"{chosen.question}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["variants"] if path.exists() else {}
    for name in chosen.variants or question.variants:
        known[name] = answer(question, name, chosen.work / chosen.question, chosen.data)
        content = {
            "task": question.task,
            "asks": question.asks,
            "base": list(question.base),
            "variants": {name: known[name] for name in question.variants if name in known},
            "machine": machine(torch.device("cpu")),
        }
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(name, json.dumps(known[name]["scores"]), flush=True)


if __name__ == "__main__":
    main()
