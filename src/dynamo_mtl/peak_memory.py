"""Measures the peak memory of a piece of work."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from pathlib import Path

import torch

MIB = 1024 * 1024
_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """The highest memory use since this object was created: of the GPU if the work runs there, else of this process.

    If the system cannot reset the process's peak, the peak since the start of the process is given.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif _RESET.exists():
            with contextlib.suppress(OSError):
                _RESET.write_text("5")  # proc(5): resets VmHWM

    def now_mib(self) -> float:
        """The memory in use now, in MiB; the peak if that is unknown."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device) / MIB
        return _status("VmRSS") or self.mib()

    def mib(self) -> float:
        """The peak so far, in MiB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MIB
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return _status("VmHWM") or peak / (MIB if sys.platform == "darwin" else 1024)


def _status(name: str) -> float | None:
    """A value from this process's status file in MiB; None if there is no such file."""
    if not _STATUS.exists():
        return None
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))
    return int(found.group(1)) / 1024 if found else None
