"""What a user waits for before anything happens."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import torch
from harness import Race

RUNS = 9
LIMIT = 0.4


def races(device: torch.device) -> dict[str, Race]:
    """Seconds of ``dynamo --help`` and of importing the package, which load no torch."""
    loads = "import dynamo_mtl, dynamo_mtl.cli, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", loads], check=True)
    times = {
        name: [_seconds(command) for _ in range(RUNS)]
        for name, command in (
            ("help", [sys.executable, "-m", "dynamo_mtl.cli", "--help"]),
            ("import", [sys.executable, "-c", "import dynamo_mtl"]),
            ("python", [sys.executable, "-c", "pass"]),
        )
    }
    low, median, high = statistics.quantiles(times["help"], n=4)
    details = {f"{name}_seconds": statistics.median(values) for name, values in times.items()}
    return {"help_seconds": Race(median, low, high, LIMIT, False, "seconds of dynamo --help, no ratio", details)}


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=dict(os.environ))
    return time.perf_counter() - began
