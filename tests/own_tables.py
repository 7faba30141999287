"""Three small tables of a user's own, two of one type, by ``dynamo init`` and ``dynamo train`` with nothing changed.

python tests/own_tables.py --output results/own-tables.json     # make own-tables
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from safetensors.torch import load_file

from dynamo_mtl.data.samples import sample_rows

ROWS = {"opinions": 180, "requests": 160, "questions": 80}


def _drawn(kind, table):
    return islice(sample_rows(kind, "train"), ROWS[table])


def write_tables(folder):
    """Opinions and requests have labels, questions an answer in a passage."""
    moods = ("unhappy", "happy")
    opinions = [(r["text"], moods[r["label"]]) for r in _drawn("sentiment", "opinions")]
    requests = [(r["text"], r["label"]) for r in _drawn("classification", "requests")]
    questions = [(r["question"], r["context"], r["answers"]["text"][0]) for r in _drawn("qa", "questions")]
    tables = {
        "opinions": (("comment", "mood"), opinions),
        "requests": (("message", "topic"), requests),
        "questions": (("question", "context", "answer"), questions),
    }
    for name, (header, rows) in tables.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])


def walk(folder, overrides=()):
    """Init, train, evaluate. Returns what the result file says."""
    write_tables(folder)

    def dynamo(*arguments):
        command = [sys.executable, "-m", "dynamo_mtl.cli", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    began = time.perf_counter()
    said = dynamo("init", *(f"{name}.csv" for name in ROWS))
    trained = dynamo("train", "config.yaml", *overrides)
    dynamo(
        "evaluate", "runs/own/checkpoints/final_model", *overrides, "--systems", "dynamo,oracle,trivial",
        "--output", "result.json",
    )  # fmt: skip
    result = json.loads((folder / "result.json").read_text())
    checkpoint = folder / "runs" / "own" / "checkpoints" / "final_model"
    adapters = {name: load_file(checkpoint / "adapters" / name / "adapter_model.safetensors") for name in ROWS}
    metrics = result["main_metrics"]
    return {
        "rows": ROWS,
        "types": dict(line.split(": ")[:2] for line in said.splitlines() if line.split(": ")[0] in ROWS),
        "seconds": round(time.perf_counter() - began, 1),
        "largest_lora_b": {
            name: round(max(float(t.abs().max()) for key, t in own.items() if "lora_B" in key), 4)
            for name, own in adapters.items()
        },
        "scores": {
            system: {name: round(scores[metrics[name]], 4) for name, scores in own.items()}
            for system, own in result["systems"].items()
        },
        "metrics": metrics,
        "validation_rows": {name: scores["n"] for name, scores in result["systems"]["oracle"].items()},
        "routing": {kind: round(own["accuracy"], 4) for kind, own in result["routing"].items() if "accuracy" in own},
        "learned_nothing": "nothing was learned" in trained,
        "commit": result["commit"],
    }


def complaints(found):
    """What does not hold that should."""
    wrong = [f"the adapter of {name} is zero" for name, size in found["largest_lora_b"].items() if not size]
    for name, score in found["scores"]["dynamo"].items():
        trivial = found["scores"]["trivial"][name]
        wrong += [f"{name}: {score}, not above its trivial system, {trivial}"] if score <= trivial else []
    instructed = found["routing"]["instructed"]
    return wrong + ([f"instructed routing {instructed}, below 0.97"] if instructed < 0.97 else [])


def main():
    """Walk the whole path, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = walk(Path(place))
    chosen.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))
    if wrong := complaints(found):
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    main()
