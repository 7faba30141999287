"""A busy machine: one answer and training, alone and beside a process that takes a core, under our way of waiting.

    python benchmarks/busy.py CHECKPOINT --output results/busy.json [data.root=PATH …]

Each way of waiting is a process of its own, since OpenMP reads it once. In it, rounds without and with the competing
process take turns; the competitor is stopped in between. The ways are run in turns too, and what is published is the
median over all rounds, with quartiles.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SPIN = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
"""Takes a core, until whoever started it has ended."""
TEXT = "The parcel came two days late and the box was open, but the driver was friendly and said he was sorry."
"""About twenty tokens."""
WAYS: dict[str, dict[str, str]] = {"ours": {}, "pytorch": {"DYNAMO_BUSY_FIRST": "torch"}}
"""Name → what the environment adds. ``pytorch`` loads PyTorch before this package can say how threads wait."""
PASSES, ANSWERS, STEPS = 2, 40, 8
"""Processes of each way; answers and updates of each round."""
ROUNDS = 3


def measure(checkpoint: str, overrides: list[str]) -> dict[str, list[float]]:
    """Milliseconds of an answer and updates a second, quiet and busy, round by round."""
    # This package settles how threads wait, unless PyTorch is loaded before it.
    importlib.import_module(os.environ.get("DYNAMO_BUSY_FIRST", "dynamo_mtl"))
    import torch
    from accelerate import Accelerator

    from dynamo_mtl.checkpoint.folder import CONFIG
    from dynamo_mtl.config import load_config
    from dynamo_mtl.inference.api import DynamoInference
    from dynamo_mtl.training.examples import ExampleSource
    from dynamo_mtl.training.loop import TrainingLoop
    from dynamo_mtl.training.phases.phase_1_adapters import AdapterPhase
    from dynamo_mtl.training.run import choose_threads, load_tables

    config = load_config(Path(checkpoint) / CONFIG, overrides)
    model = DynamoInference(checkpoint, device="cpu")
    trained = DynamoInference(checkpoint, device="cpu").system
    task = next(iter(trained.tasks))
    source = ExampleSource(trained, load_tables(config, {task: trained.tasks[task]}))
    phase: Any = AdapterPhase(source, task, config.training)
    batches = [phase.draw(step % phase.steps) for step in range(STEPS)]
    loop = TrainingLoop(phase, trained, config.training, Accelerator(cpu=True))
    found: dict[str, list[float]] = {name: [] for name in ("quiet_ms", "busy_ms", "train_quiet", "train_busy")}
    threads = torch.get_num_threads()
    competitor = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        for number in range(ROUNDS + 1):
            for kind in ("quiet", "busy"):
                os.kill(competitor.pid, signal.SIGCONT if kind == "busy" else signal.SIGSTOP)
                time.sleep(0.3)
                times = []
                for _ in range(ANSWERS):
                    began = time.perf_counter()
                    model.predict(TEXT, task_hint=task)
                    times.append(1000 * (time.perf_counter() - began))
                choose_threads(None, None, trained.device)  # as a run does that starts now
                began = time.perf_counter()
                for batch in batches:
                    loop.update(batch)
                rate = STEPS / (time.perf_counter() - began)
                torch.set_num_threads(threads)
                if number:  # the first round compiles
                    found[f"{kind}_ms"].append(statistics.median(times))
                    found[f"train_{kind}"].append(rate)
    finally:
        competitor.kill()
    return found


def main() -> None:
    """Run every way in turns, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--round", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.round:
        print(json.dumps(measure(chosen.checkpoint, chosen.overrides)))
        return
    rounds: dict[str, dict[str, list[float]]] = {way: {} for way in WAYS}
    for _ in range(PASSES):
        for way, own in WAYS.items():
            command = [sys.executable, __file__, chosen.checkpoint, *chosen.overrides, "--round"]
            done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, check=True)
            for name, values in json.loads(done.stdout.splitlines()[-1]).items():
                rounds[way].setdefault(name, []).extend(values)
            print(way, {name: round(statistics.median(values), 2) for name, values in rounds[way].items()}, flush=True)

    import torch
    from harness import machine

    from dynamo_mtl.training.provenance import source_revision

    def summary(way: str) -> dict[str, Any]:
        medians = {name: round(statistics.median(values), 2) for name, values in rounds[way].items()}
        quartiles = {name: [round(q, 2) for q in statistics.quantiles(v, n=4)[::2]] for name, v in rounds[way].items()}
        return {**medians, "quartiles": quartiles}

    ours, theirs = summary("ours"), summary("pytorch")
    content = {
        **ours,
        "pytorch": theirs,
        "ratios": {
            "busy_over_quiet_ms": round(ours["busy_ms"] / ours["quiet_ms"], 2),
            "train_busy_over_quiet": round(ours["train_busy"] / ours["train_quiet"], 2),
            "quiet_ms_over_pytorch": round(ours["quiet_ms"] / theirs["quiet_ms"], 3),
            "train_quiet_over_pytorch": round(ours["train_quiet"] / theirs["train_quiet"], 3),
        },
        "commit": source_revision(),
        "machine": machine(torch.device("cpu")),
    }
    text = json.dumps(content, indent=2) + "\n"
    print(text)
    if chosen.output is not None:
        chosen.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
