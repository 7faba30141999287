"""What a new user does: three tables of their own become a served model, by the commands of docs/your_own_data.md.

    python tests/newcomer.py --output results/newcomer.json     # make newcomer

The tables are written from the built-in corpus under a user's names, with labels and answers as people write them.
"""

import argparse
import csv
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from itertools import islice
from pathlib import Path

from dynamo_mtl.data.samples import sample_rows

PAGE = Path(__file__).parent.parent / "docs" / "your_own_data.md"
MARK = "<!-- the newcomer's path"
LIMIT_SECONDS = 900
SHORT = [
    *(f"tasks.{name}.training.max_steps=6" for name in ("reviews", "requests", "questions")),
    "training.eval_examples=8", "training.router.examples_per_task=30", "training.router.feature_epochs=2",
    "training.router.novelty_examples=20",
]  # fmt: skip
"""Overrides under which the path is a test of a minute."""


def commands():
    """The lines of the page's first block of commands."""
    text = PAGE.read_text(encoding="utf-8").partition(MARK)[2]
    block = re.search(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    assert block
    return [shlex.split(line)[1:] for line in block[1].splitlines() if line.startswith("dynamo ")]


def write_tables(folder, rows):
    """Reviews, requests and questions. Returns an input of each that the tables do not hold, with its file's name."""
    found = {
        "reviews": [(r["text"], ("negative", "positive")[r["label"]]) for r in sample_rows("sentiment", "train")],
        "requests": [(r["text"], r["label"]) for r in sample_rows("classification", "train")],
        "questions": [
            (r["question"], r["context"], r["answers"]["text"][0]) for r in sample_rows("qa", "train")
        ],
    }  # fmt: skip
    headers = {
        "reviews": ("review", "opinion"),
        "requests": ("message", "topic"),
        "questions": ("question", "context", "answer"),
    }
    for name, own in found.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([headers[name], *islice(own, rows)])
    question = next(iter(sample_rows("qa", "validation")))
    return {
        "reviews": [{"text": r["text"]} for r in islice(sample_rows("sentiment", "validation"), 10)],
        "requests": [{"text": r["text"]} for r in islice(sample_rows("classification", "validation"), 10)],
        "questions": [{"question": question["question"], "context": question["context"]}],
    }


def walk(folder, rows, overrides):
    """Run every command of the page in ``folder``, then ask the server. Returns seconds and what it said."""
    asked = write_tables(folder, rows)
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache"), "DYNAMO_API_KEY": ""}
    of_user = {key: value for key, value in environment.items() if key != "OMP_NUM_THREADS"}
    seconds, began = {}, time.perf_counter()
    for arguments in commands():
        step = time.perf_counter()
        command = [sys.executable, "-m", "dynamo_mtl.cli", *arguments]
        if arguments[0] == "serve":
            answers = serve_and_ask(command, folder, environment, asked)
        else:
            own = overrides if arguments[0] in ("train", "evaluate") else []
            done = subprocess.run(
                # The doctor would remark on the threads that a test runner has set.
                [*command, *own], cwd=folder, env=of_user if arguments[0] == "doctor" else environment,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise SystemExit(f"dynamo {' '.join(arguments)} left with {done.returncode}: {done.stderr[-2000:]}")
        seconds[arguments[0] if arguments[0] != "data" else "data check"] = round(time.perf_counter() - step, 1)
    routed = [answer["task"] == name for name, own in answers.items() for answer in own]
    return {
        "rows": rows, "seconds": seconds, "total_seconds": round(time.perf_counter() - began, 1),
        "asked": len(routed), "routed_right": sum(routed), "answers": {name: own[0] for name, own in answers.items()},
    }  # fmt: skip


def serve_and_ask(command, folder, environment, asked):
    """Start the server on a free port, ask, stop it. Returns the answers by file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [*command, f"serving.port={port}"], cwd=folder, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            assert server.poll() is None, "the server ended before it was asked"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        body = json.dumps({"inputs": [one for own in asked.values() for one in own]}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/predict", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as said:
            answers = iter(json.load(said))
    finally:
        server.terminate()
        server.wait(30)
    return {name: [next(answers) for _ in own] for name, own in asked.items()}


def main():
    """Walk the whole path and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2000, help="of each table")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = walk(Path(place), chosen.rows, [])
    chosen.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(
        json.dumps(found["seconds"]), f"{found['total_seconds']:.0f} s, {found['routed_right']}/{found['asked']} right"
    )
    if found["total_seconds"] > LIMIT_SECONDS:
        raise SystemExit(f"it took more than {LIMIT_SECONDS} s")


if __name__ == "__main__":
    main()
