"""How many cores this process may use, and how OpenMP's threads wait: settled before PyTorch is loaded.

OpenMP reads its settings once, when PyTorch is loaded. By default its threads wait in a loop, which on a busy machine
takes the cores from those that have work. ``benchmarks/busy.py`` measures it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import MutableMapping
from pathlib import Path

WAITING = {"GOMP_SPINCOUNT": "10000"}
"""How often a thread looks before it sleeps, 300,000 times by default; set unless the user says how threads wait. Long
enough for the next operation of a pass."""
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
    """Cores of this process's affinity, whatever a quota grants."""
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
    """Usable cores that nobody else is at work on, at least one.

    Args:
        seconds: how long is looked.
        stat: where the system counts what each core does.

    Under a container's quota, or where nothing is counted, all usable cores.
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
    """Set what OpenMP reads, where the user has not: how threads wait, and no more of them than there are cores."""
    if not any(name in environment for name in (*WAITING, *SAID_ELSEWHERE)):
        environment.update(WAITING)
    if "OMP_NUM_THREADS" not in environment and (cores := usable_cores(root)) < _every_core():
        environment["OMP_NUM_THREADS"] = str(cores)
