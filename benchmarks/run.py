"""Run the races: ``python benchmarks/run.py [NAME …] [--device cuda] [--output results/bench-cpu.json]``.

Without names all of them; with names, those replace their like in a file that is there. Prints each race as it ends; a
race that misses its target is a result like any other.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from breakdown import breakdown
from harness import machine

RACES = (
    "forward", "peft", "routers", "training", "router_epoch", "generation", "shared_trunk", "startup", "compile",
    "linear", "shapes", "curves",
)  # fmt: skip

BREAKDOWN = "breakdown"


def main() -> None:
    """Parse the command line, race, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*RACES, BREAKDOWN, []], help="all if none is given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    device = torch.device(chosen.device)
    races: dict[str, object] = {}
    began = time.perf_counter()
    for name in [name for name in chosen.names or RACES if name != BREAKDOWN]:
        start = time.perf_counter()
        for race, found in importlib.import_module(f"race_{name}").races(device).items():
            result = races[race] = found.to_json()
            verdict = "met" if result["met"] else "MISSED"
            print(
                f"{race:36s} {found.ratio:7.2f}  ({found.low:.2f} to {found.high:.2f})  "
                f"{result['target_is']} {found.target}: {verdict}",
                flush=True,
            )
        print(f"  {name}: {time.perf_counter() - start:.0f} s", flush=True)
    if not chosen.output:
        return
    content: dict[str, Any] = {"races": {}, "seconds": 0.0}
    if chosen.names and chosen.output.exists():
        content = json.loads(chosen.output.read_text(encoding="utf-8"))
    if not chosen.names or BREAKDOWN in chosen.names:
        content["breakdown"] = breakdown(device)
    content["races"] |= races
    content |= {"machine": machine(device), "seconds": content["seconds"] + time.perf_counter() - began}
    chosen.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
