"""Paired races: two ways of doing the same, run in turns in one process, and the ratio of their times.

Every race first asserts that both ways give the same. Neighbouring runs make a pair, the order within a pair changes
from pair to pair, and what is published is the median of the pairs' ratios with its quartiles.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from dynamo_mtl.peak_memory import MIB, PeakMemory

PAIRS = 11
WARM_UP = 2


@dataclass(frozen=True)
class Race:
    """A ratio that was measured, and what it should be."""

    ratio: float
    """Median over pairs."""
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    target: float
    at_least: bool
    """Whether the target is the least (how many times faster) or the most (how many times the time or memory)."""
    what: str
    """What is divided by what."""
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it stands in the result file."""
        met = self.ratio >= self.target if self.at_least else self.ratio <= self.target
        return {
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "target": self.target,
            "target_is": "at least" if self.at_least else "at most",
            "met": met,
            "what": self.what,
            **self.details,
        }


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """One run, until the device has finished."""
    synchronize(device)
    began = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait for what was started."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def race(
    above: Callable[[], object],
    below: Callable[[], object],
    device: torch.device,
    *,
    target: float,
    at_least: bool,
    what: str,
    pairs: int = PAIRS,
    **details: Any,
) -> Race:
    """Time of ``above`` over time of ``below``."""
    for _ in range(WARM_UP):
        above()
        below()
    times: list[tuple[float, float]] = []
    for pair in range(pairs):
        if pair % 2:
            second = seconds(below, device)
            times.append((seconds(above, device), second))
        else:
            times.append((seconds(above, device), seconds(below, device)))
    low, ratio, high = statistics.quantiles([a / b for a, b in times], n=4)
    above_ms, below_ms = (1000 * statistics.median(values) for values in zip(*times, strict=True))
    return Race(ratio, low, high, target, at_least, what, {"above_ms": above_ms, "below_ms": below_ms, **details})


def peak_extra_mib(run: Callable[[], object], device: torch.device) -> float:
    """How much more memory than before a run has at its peak. On a CPU the allocator's own count, not the process's."""
    if device.type == "cuda":
        peak = PeakMemory(device)
        before = peak.now_mib()
        run()
        synchronize(device)
        return peak.mib() - before
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as profile:
        run()
    # Every allocation and release in order: their running sum is the extra memory in use.
    level = most = 0
    for event in profile.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        if event.name() == "[memory]":
            level += event.nbytes()
            most = max(most, level)
    return most / MIB


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures belong to."""
    name = platform.processor() or platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        lines = [line for line in cpus.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return {
        "cpu": name,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in ("torch", "transformers", "peft")},
    }
