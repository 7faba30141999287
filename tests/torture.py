"""Kills a run of all three phases again and again, and sees that nothing is lost: ``make torture``.

Every attempt is a process that does what ``dynamo train --resume latest`` does, and is killed with SIGKILL at a random
moment. After each kill, every checkpoint and state under its final name is verified. A run that reaches its end is
compared with one that was never killed: all tensors by their hashes, all logged values but rates.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from jobs import context
from tiny import make_tiny_roberta, tiny_system_settings

from dynamo_mtl.cli import main
from dynamo_mtl.errors import CheckpointError
from dynamo_mtl.storage import verify_folder
from dynamo_mtl.strict_yaml import dump_yaml

TASKS = ("sentiment", "qa", "translation")
PHASES = ("phase_1", "phase_2", "final_model")
RATES = {"steps_per_second", "tokens_per_second"}


def settings(backbone, cache):
    """A run of some seconds with dropout everywhere, so that the random state matters; saved after every step."""
    tiny = tiny_system_settings(backbone, cache)
    data = {k: v for k, v in tiny["data"].items() if not k.endswith("_data_path")}
    training = {"max_steps": 25, "batch_size": 8, "eval_every": 10, "eval_examples": 4, "log_every": 3, "save_every": 1}
    training["router"] = {
        "examples_per_task": 16,
        "feature_epochs": 2,
        "feature_batch_size": 8,
        "mixture_steps": 10,
        "general_texts": 20,
    }
    training["joint"] = {"max_steps": 20, "examples_per_task": 10}
    return {
        **tiny,
        "data": {**data, **{f"{n}_data_path": "sample" for n in TASKS}},
        "tasks": {n: tiny["tasks"][n] for n in TASKS},
        "lora_configs": {n: {**tiny["lora_configs"][n], "dropout": 0.1} for n in TASKS},
        "training": training,
    }


def start(folder):
    """A process that trains, or goes on with a run, in ``folder``."""
    process = context.Process(target=_train, args=(folder,))
    process.start()
    return process


def _train(folder):
    import torch

    torch.set_num_threads(1)
    with (folder / "output.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        main(["train", str(folder / "config.yaml"), "--resume", "latest"])


def prepare(folder, chosen):
    """A folder for a run."""
    folder.mkdir(parents=True)
    places = {"log_dir": str(folder / "logs"), "checkpoint_dir": str(folder / "checkpoints")}
    (folder / "config.yaml").write_text(dump_yaml({**chosen, **places}), encoding="utf-8")
    return folder


def outcome(folder):
    """Hashes of all that was trained, and all that was logged but rates."""
    hashes = {}
    for name in PHASES:
        manifest = json.loads((folder / "checkpoints" / name / "manifest.json").read_text())
        hashes[name] = {k: v["sha256"] for k, v in manifest.items() if k.endswith(".safetensors")}
    lines = [json.loads(line) for line in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]
    return hashes, [{k: v for k, v in line.items() if k not in RATES} for line in lines]


def verify(folder):
    """Verified and broken folders among those that are seen under their names."""
    checkpoints = folder / "checkpoints"
    found = [checkpoints / name for name in PHASES if (checkpoints / name).exists()]
    found += sorted((checkpoints / "resume").glob("state-*"))
    broken = []
    for place in found:
        try:
            verify_folder(place)
        except CheckpointError as error:
            broken.append(str(error))
    return len(found) - len(broken), broken


def torture(kills, place, seconds, seed=0):
    """Kill runs under ``place`` until ``kills`` is reached or ``seconds`` are over. Returns the figures."""
    began, rng = time.monotonic(), random.Random(seed)
    make_tiny_roberta(place / "backbone")
    chosen = settings(place / "backbone", place / "cache")
    straight = prepare(place / "straight", chosen)
    _finish(start(straight), straight)
    expected = outcome(straight)
    figures = {"kills": 0, "checkpoints_verified": 0, "broken_checkpoints": 0, "runs_finished": 0}
    equal, attempt = [], time.monotonic() - began
    folder = prepare(place / "run-0", chosen)
    while figures["kills"] < kills and time.monotonic() - began < seconds:
        process = start(folder)
        process.join(rng.uniform(0, attempt / 2))
        if process.is_alive():
            process.kill()
            process.join()
            figures["kills"] += 1
            good, broken = verify(folder)
            figures["checkpoints_verified"] += good
            figures["broken_checkpoints"] += len(broken)
            print(f"kill {figures['kills']}: {good} verified {' '.join(broken)}", flush=True)
        else:
            _finish(process, folder)
            equal.append(outcome(folder) == expected)
            folder = prepare(place / f"run-{len(equal)}", chosen)
    _finish(start(folder), folder)
    equal.append(outcome(folder) == expected)
    return {**figures, "runs_finished": len(equal), "final_state_equal": all(equal)}


def _finish(process, folder):
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"the run in {folder} failed:\n{(folder / 'output.txt').read_text()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=780, help="no kill after that")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = torture(arguments.kills, Path(place), arguments.seconds)
    arguments.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found))
    good = found["kills"] == arguments.kills and not found["broken_checkpoints"] and found["final_state_equal"]
    sys.exit(0 if good else 1)
