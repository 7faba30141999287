"""Counts the cores that this process may use, and sets how OpenMP's threads wait, before PyTorch is loaded.

OpenMP reads its settings once, when PyTorch is loaded. By default its threads wait in a loop. On a busy machine, this
takes cores away from threads that have work (``benchmarks/busy.py`` measures it).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import MutableMapping
from pathlib import Path

WAITING = {"GOMP_SPINCOUNT": "10000"}
"""How often a waiting thread looks for work before it sleeps (OpenMP's default is 300,000). This is long enough for the
next operation of a pass. It is set unless the user configures how threads wait."""
SAID_ELSEWHERE = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def usable_cores(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may run on: those of its affinity, or fewer under a container's quota.

    Args:
        root: where the control groups are mounted; version 2 has ``cpu.max``, version 1 ``cpu/cpu.cfs_quota_us``.
    """
    cores = _every_core()
    quota = _quota(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _every_core() -> int:
    """Cores in this process's affinity, without regard to a quota."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota(root: Path) -> float | None:
    """Cores that a control group grants; None without a limit."""
    try:
        given, period = (root / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            given, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    try:
        return None if float(given) <= 0 else float(given) / float(period)
    except (ValueError, ZeroDivisionError):  # "max": no limit
        return None


def free_cores(seconds: float = 0.3, stat: Path = Path("/proc/stat")) -> int:
    """Number of usable cores that no other process is using, at least one.

    Under a container's quota, or if the system counts nothing, this is the number of all usable cores.

    Args:
        seconds: how long to measure.
        stat: file in which the system counts what each core does.
    """
    cores = usable_cores()
    if not hasattr(os, "sched_getaffinity") or cores < len(own := os.sched_getaffinity(0)):
        return cores
    before = _core_times(stat)
    time.sleep(seconds)
    after = _core_times(stat)
    shares = [
        (after[core][0] - before[core][0]) / (after[core][1] - before[core][1])
        for core in own
        if core in before and core in after and after[core][1] > before[core][1]
    ]
    return max(1, cores - round(sum(shares)))


def _core_times(stat: Path) -> dict[int, tuple[int, int]]:
    """Core → ticks at work, and all ticks, since the system began (``man 5 proc_stat``)."""
    found: dict[int, tuple[int, int]] = {}
    try:
        lines = stat.read_text(encoding="ascii").splitlines()
    except OSError:
        return found
    for line in lines:
        name, *ticks = line.split()
        if name.startswith("cpu") and name != "cpu":
            numbers = [int(number) for number in ticks[:8]]
            found[int(name[3:])] = (sum(numbers) - numbers[3] - numbers[4], sum(numbers))  # less idle and waiting
    return found


def settle(environment: MutableMapping[str, str], root: Path = Path("/sys/fs/cgroup")) -> None:
    """Set OpenMP's variables that the user has not set: how threads wait, and at most one thread per usable core."""
    if not any(name in environment for name in (*WAITING, *SAID_ELSEWHERE)):
        environment.update(WAITING)
    if "OMP_NUM_THREADS" not in environment and (cores := usable_cores(root)) < _every_core():
        environment["OMP_NUM_THREADS"] = str(cores)
