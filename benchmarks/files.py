"""Answer a file of a million short texts by ``dynamo predict``, beside a loop in Python and transformers' pipeline.

    python benchmarks/files.py results/files.json --folder runs/files
    python benchmarks/files.py results/files.json --folder runs/files --rows 20000

The texts are those of the built-in corpus. The model is MiniLM with two tasks of labels, trained for a moment: its
speed does not depend on how good it is. What was measured before in the same folder is kept.
"""

import argparse
import csv
import itertools
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from harness import machine
from transformers import pipeline

from dynamo_mtl.checkpoint.metadata import read_metadata
from dynamo_mtl.config.load import DynamoConfig
from dynamo_mtl.config.validation import validate
from dynamo_mtl.data.samples import sample_rows
from dynamo_mtl.data.samples.classification import TOPICS
from dynamo_mtl.evaluation.compare import train_unless_done
from dynamo_mtl.export.merged import export_merged
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.messages import log_to_console
from dynamo_mtl.training.stages import FOLDERS

ROWS, FEW, KILLED = 1_000_000, 10_000, 50_000
LOOP_ROWS = 8_192
"""Rows of the loops that the file is compared with."""
BATCHES = (64, 256, 1024, 4096)
PIPELINE_BATCHES = (16, 64, 256)
TASK = "topic"
CPU = torch.device("cpu")


def main() -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/files"))
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--backbone", default="minilm")
    given = parser.parse_args()
    log_to_console(logging.INFO)
    given.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = trained(given.folder, given.backbone)
    large, few = written(given.folder, given.rows), written(given.folder, min(FEW, given.rows))
    before = loops(checkpoint, large)
    small = answered(checkpoint, few)
    whole = answered(checkpoint, large)
    after = loops(checkpoint, large)
    loop = max((before[size] + after[size]) / 2 for size in BATCHES)
    theirs = pipelines(checkpoint, given.folder, large)
    rate = given.rows / whole["seconds"]
    result = {
        "rows": given.rows,
        "rows_per_second": rate,
        "python_batches_per_second": loop,
        "ratio": rate / loop,
        "peak_rss_mib_at_10k": small["peak_rss_mib"],
        "peak_rss_mib_at_1m": whole["peak_rss_mib"],
        "memory_ratio": whole["peak_rss_mib"] / small["peak_rss_mib"],
        "killed_resumed_equal": killed_and_resumed(checkpoint, given.folder, min(KILLED, given.rows)),
        "transformers_pipeline_rows_per_second": max(theirs.values()),
        "times_transformers": rate / max(theirs.values()),
        "loops_before": before,
        "loops_after": after,
        "pipelines": theirs,
        "commit": read_metadata(checkpoint).commit,
        "machine": machine(CPU),
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def trained(folder: Path, backbone: str) -> Path:
    """A checkpoint with two tasks, whose heads transformers can compute as well."""
    tasks = {
        TASK: {"type": "classification", "labels": list(TOPICS), "pooling": "first"},
        "sentiment": {"type": "sentiment", "pooling": "first"},
    }
    paths = {TASK: "sample:classification", "sentiment": "sample"}
    config = validate(
        DynamoConfig,
        {
            "data": {"paths": paths},
            "tasks": {name: {**own, "training": {"max_steps": 30}, "train_examples": 960, "validation_examples": 100}
                      for name, own in tasks.items()},
            "lora_configs": {name: {"rank": 16, "alpha": 32, "target_modules": ["query", "value"]} for name in tasks},
            "model": {"base_model_name": backbone, "hidden_size": 384},
            "training": {"num_epochs": 1, "router": {"examples_per_task": 200}, "eval_examples": 50},
            "checkpoint_dir": str(folder / "checkpoints"), "log_dir": str(folder / "logs"),
        },
        "benchmarks/files.py",
    )  # fmt: skip
    place = Path(config.checkpoint_dir) / FOLDERS[2]
    train_unless_done(config, place, (1, 2))
    return place


def texts(rows: int) -> Iterator[str]:
    """Short texts, each another."""
    known = [str(row["text"]) for row in sample_rows("classification", "train")]
    return (f"{known[number % len(known)].rsplit(' (', 1)[0]} ({number})" for number in range(rows))


def written(folder: Path, rows: int) -> Path:
    """A file of so many texts."""
    path = folder / f"texts-{rows}.csv"
    if not path.exists():
        beside = path.with_suffix(".new")
        with beside.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(itertools.chain([("id", "text")], enumerate(texts(rows))))
        os.replace(beside, path)
    return path


def command(checkpoint: Path, source: Path, output: Path, *more: str) -> list[str]:
    """``dynamo predict`` over a file."""
    given = ["predict", str(checkpoint), "--input", str(source), "--output", str(output), "--tasks", TASK, *more]
    return [sys.executable, "-m", "dynamo_mtl.cli", *given]


def answered(checkpoint: Path, source: Path) -> dict[str, float]:
    """Seconds and peak memory of a run over a file, as a command of its own. What was measured before is kept."""
    output, noted = source.with_suffix(".answered.csv"), source.with_suffix(".json")
    if noted.exists() and output.exists():
        return json.loads(noted.read_text())
    began = time.perf_counter()
    process = subprocess.Popen(command(checkpoint, source, output, "--overwrite"))
    _, status, used = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    found = {"seconds": time.perf_counter() - began, "peak_rss_mib": used.ru_maxrss / 1024}
    noted.write_text(json.dumps(found))
    return found


def first_texts(source: Path) -> list[str]:
    """The texts of the first rows of a file."""
    with source.open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in itertools.islice(csv.DictReader(file), LOOP_ROWS)]


def loops(checkpoint: Path, source: Path) -> dict[int, float]:
    """Rows a second of a loop over batches in Python, for each size of a batch: the median of three runs."""
    model, rows = DynamoInference(checkpoint, device="cpu"), first_texts(source)
    rates: dict[int, list[float]] = {size: [] for size in BATCHES}
    for _ in range(3):
        for size in BATCHES:
            began = time.perf_counter()
            for start in range(0, len(rows), size):
                model(rows[start : start + size], tasks=[TASK], batch_size=size)
            rates[size].append(len(rows) / (time.perf_counter() - began))
    return {size: statistics.median(own) for size, own in rates.items()}


def pipelines(checkpoint: Path, folder: Path, source: Path) -> dict[int, float]:
    """Rows a second of transformers' pipeline with the same weights, for each size of a batch."""
    merged = folder / "merged"
    if not merged.exists():
        export_merged(checkpoint, merged, TASK)
    rows, found = first_texts(source)[: LOOP_ROWS // 2], {}
    classify = pipeline("text-classification", model=str(merged), device="cpu", top_k=None)
    model = DynamoInference(checkpoint, device="cpu")
    for size in PIPELINE_BATCHES:
        classify(rows[:256], batch_size=size)
        began = time.perf_counter()
        theirs = classify(rows, batch_size=size)
        found[size] = len(rows) / (time.perf_counter() - began)
        ours = model(rows, task_hint=TASK)
        differ = sum(one["label"] != best_of(other) for one, other in zip(ours, theirs, strict=True))
        assert differ <= len(rows) // 200, f"{differ} answers differ"
    return found


def best_of(scores: list[dict[str, float | str]]) -> str:
    """The label with the highest score."""
    return str(max(scores, key=lambda one: float(one["score"]))["label"])


def killed_and_resumed(checkpoint: Path, folder: Path, rows: int) -> bool:
    """Whether a run that is killed twice and goes on writes the bytes of one that is not."""
    source = written(folder, rows)
    whole, output = folder / "whole.csv", folder / "killed.csv"
    subprocess.run(command(checkpoint, source, whole, "--overwrite"), check=True)
    output.unlink(missing_ok=True)
    partial = output.with_name(f"{output.name}.partial")
    for parts in (3, 9):
        process = subprocess.Popen(command(checkpoint, source, output, "--resume"))
        while process.poll() is None and len(list(partial.glob("*.part"))) < parts:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(checkpoint, source, output, "--resume"), check=True)
    return whole.read_bytes() == output.read_bytes()


if __name__ == "__main__":
    main()
