"""Small experiments at equal budgets that chose the recipes of ``configs/minilm.yaml``.

    python benchmarks/experiments.py QUESTION [VARIANT …] --data PATH [--work runs/experiments]
    python benchmarks/experiments.py decoding-TASK [VARIANT …] --data PATH --checkpoints FOLDER

Each variant trains phase 1 of one task and scores its adapter under oracle routing; all variants of a question have the
same number of updates. Those of ``decoding-TASK`` let the adapter of the phase 1 in FOLDER write in other ways.
Writes ``results/experiments/QUESTION.json``; variants that are there and not named are kept. ``docs/experiments.md``
shows the files, and says what was concluded.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import machine

from dynamo_mtl.config import DynamoConfig, load_config
from dynamo_mtl.config.overrides import apply_overrides
from dynamo_mtl.config.validation import validate
from dynamo_mtl.data.data_config import DATA_PATH
from dynamo_mtl.evaluation.benchmark import Scoreboard, evaluate_checkpoint
from dynamo_mtl.evaluation.compared_systems import ComparedSystem, choose_oracle
from dynamo_mtl.evaluation.inputs import task_examples
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.strict_yaml import read_settings
from dynamo_mtl.system import load_system
from dynamo_mtl.training.run import train

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
    trains: bool = True
    """Whether each variant is trained, or a trained adapter only writes in another way."""


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
        _own(
            QA, "training.max_steps=700", "training.load_best_model_at_end=true",
            "validation_file=qa/squad11_dev_12articles.jsonl.gz",
        ),
        {
            "as it was": (),
            "LoRA+ 4": ("training.loraplus_ratio=4.0",),
            "learning rate 2e-3": _own(QA, "training.lora_lr=2e-3"),
            "rank 64": ("lora_configs.qa.rank=64", "lora_configs.qa.alpha=128"),
            "tap 0": ("model.tap_layer=0",),
        },
    ),
    "reviews": Question(
        REVIEWS, "Which adapter and which learning rate, and what does training the whole backbone reach?",
        _own(
            REVIEWS, "training.max_steps=5000", "training.lora_lr=1e-3", "training.load_best_model_at_end=true",
            "label_smoothing=0.0",
        ),
        {
            "as it was": (),
            "learning rate 5e-4": _own(REVIEWS, "training.lora_lr=5e-4"),
            "learning rate 5e-4, last state": _own(
                REVIEWS, "training.lora_lr=5e-4", "training.load_best_model_at_end=false"
            ),
            "learning rate 5e-4, last state, label smoothing 0.1": _own(
                REVIEWS, "training.lora_lr=5e-4", "training.load_best_model_at_end=false", "label_smoothing=0.1"
            ),
            "rank 32": ("lora_configs.sentiment.rank=32", "lora_configs.sentiment.alpha=64"),
            "tap 0": ("model.tap_layer=0",),
            "full fine-tuning": ("model.adapters=none", "model.freeze_backbone=false"),
            "full fine-tuning, last state": (
                "model.adapters=none",
                "model.freeze_backbone=false",
                "tasks.sentiment.training.load_best_model_at_end=false",
            ),
        },
    ),
    "decoding-translation": Question(
        GERMAN, "How many beams, and which length penalty?",
        (),
        {
            "greedy": _own(GERMAN, "generation.num_beams=1"),
            "4 beams, length penalty 0.6": _own(GERMAN, "generation.num_beams=4", "generation.length_penalty=0.6"),
            "4 beams, length penalty 1.0": _own(GERMAN, "generation.num_beams=4", "generation.length_penalty=1.0"),
            "4 beams, length penalty 1.4": _own(GERMAN, "generation.num_beams=4", "generation.length_penalty=1.4"),
        },
        trains=False,
    ),
    "decoding-code": Question(
        CODE, "How many beams, and which length penalty?",
        (),
        {
            "greedy": _own(CODE, "generation.num_beams=1"),
            "4 beams, length penalty 1.0": _own(CODE, "generation.num_beams=4", "generation.length_penalty=1.0"),
            "4 beams, length penalty 1.5": _own(CODE, "generation.num_beams=4", "generation.length_penalty=1.5"),
            "4 beams, length penalty 2.0": _own(CODE, "generation.num_beams=4", "generation.length_penalty=2.0"),
        },
        trains=False,
    ),
    "decoding-news": Question(
        NEWS, "How many beams, and which length penalty?",
        _own(NEWS, "validation_examples=500"),
        {
            "greedy": _own(NEWS, "generation.num_beams=1"),
            "4 beams, length penalty 1.0": _own(NEWS, "generation.num_beams=4", "generation.length_penalty=1.0"),
            "4 beams, length penalty 2.0": _own(NEWS, "generation.num_beams=4", "generation.length_penalty=2.0"),
        },
        trains=False,
    ),
}  # fmt: skip


def alone(task: str, overrides: tuple[str, ...], place: Path, data: str) -> DynamoConfig:
    """The configuration of one task by itself, that writes under ``place``."""
    raw = read_settings(CONFIG)
    apply_overrides(raw, [*overrides, *places(place, data)])
    raw["data"] = {k: v for k, v in raw["data"].items() if not k.endswith(DATA_PATH) or k == f"{task}{DATA_PATH}"}
    for section in ("tasks", "lora_configs"):
        raw[section] = {name: own for name, own in raw[section].items() if name == task}
    return validate(DynamoConfig, raw, str(CONFIG))


def places(place: Path, data: str) -> tuple[str, ...]:
    """Overrides that read the data of a folder and write under another."""
    return f"data.root={data}", f"checkpoint_dir={place / 'checkpoints'}", f"log_dir={place / 'logs'}"


def decoding_answer(question: Question, variant: str, checkpoints: Path, data: str) -> dict[str, Any]:
    """Score the adapter of a finished phase 1 under other settings of its decoding."""
    overrides = [*question.base, *question.variants[variant], f"data.root={data}"]
    device = torch.device("cpu")
    system, metadata = load_system(checkpoints / "phase_1", device, load_config(CONFIG, overrides))
    board = Scoreboard({question.task: task_examples(system, question.task, "validation", metadata.seed)})
    began = time.perf_counter()
    board.add("oracle", ComparedSystem(Predictor(system, metadata.calibration), choose_oracle))
    return {
        "overrides": list(question.variants[variant]),
        "scores": board.scores["oracle"][question.task],
        "interval": board.intervals["oracle"][question.task],
        "seconds": time.perf_counter() - began,
        "commit": metadata.commit,
        "seed": metadata.seed,
    }


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
    parser.add_argument("question", choices=list(QUESTIONS))
    parser.add_argument("variants", nargs="*", help="all if none is named")
    parser.add_argument("--data", required=True, help="the folder that data.root names")
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--checkpoints", type=Path, help="for decoding: a run's folder with its phases")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    place = chosen.work / chosen.question
    path = ROOT / "results" / "experiments" / f"{chosen.question}.json"
    if chosen.checkpoints is None and not QUESTIONS[chosen.question].trains:
        parser.error(f"{chosen.question} starts from a trained run: give --checkpoints FOLDER")
    path.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["variants"] if path.exists() else {}
    question = QUESTIONS[chosen.question]
    facts = {"task": question.task, "asks": question.asks, "base": list(question.base)}
    for name in chosen.variants or question.variants:
        if question.trains:
            known[name] = answer(question, name, place, chosen.data)
        else:
            known[name] = decoding_answer(question, name, chosen.checkpoints, chosen.data)
        _write(path, facts, known, question.variants)
        print(name, json.dumps(known[name]["scores"]), flush=True)


def _write(path: Path, facts: dict[str, Any], known: dict[str, Any], order: Iterable[str]) -> None:
    content = {
        **facts,
        "variants": {name: known[name] for name in order if name in known},
        "machine": machine(torch.device("cpu")),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
