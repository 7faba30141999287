"""Find problems that keep a configuration or checkpoint from working on this machine, and suggest fixes."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement

from dynamo_mtl.checkpoint.metadata import METADATA
from dynamo_mtl.config.system_config import SystemConfig
from dynamo_mtl.cores import usable_cores
from dynamo_mtl.errors import DynamoError
from dynamo_mtl.model.backbone import MINILM, find_backbone
from dynamo_mtl.model.hardware import compute_dtype
from dynamo_mtl.setup.data_check import check_data
from dynamo_mtl.system import load_system

ROOM = 2.0
"""GiB that a run may need for its states."""
SAMPLE = 200
EXTRAS = {
    "serve": "fastapi",
    "track": "wandb",
    "tune": "optuna",
    "export": "onnxruntime",
    "ray": "ray",
    "quantize": "torchao",
}
"""Extra → the package that shows that it is installed."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    is_well: bool | None
    """None for information that is neither good nor bad."""
    said: str
    todo: str = ""

    def line(self) -> str:
        """As a line of text."""
        mark = {True: "ok", False: "PROBLEM", None: "note"}[self.is_well]
        return f"{mark:8}{self.what}: {self.said}{'; ' if self.todo else ''}{self.todo}"


def examine(config: SystemConfig | None, config_path: Path | None, checkpoint: Path | None) -> Iterator[Finding]:
    """Look at the machine, then at a configuration and its data, then at a checkpoint."""
    yield from _machine()
    if config is not None:
        yield from _configuration(config, str(config_path))
    if checkpoint is not None:
        yield _try("checkpoint", lambda: _checkpoint(checkpoint), "train it again, or fetch it again")


def _machine() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", sys.version_info >= (3, 11), f"{python} on {platform.machine()}", "")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = str(compute_dtype("auto", device)).removeprefix("torch.")
    where = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    yield Finding("torch", True, f"{version('torch')} on {where}, computes in {dtype}")
    cores = usable_cores()
    if not cuda and torch.get_num_threads() > cores:
        yield Finding("threads", False, f"{torch.get_num_threads()} for {cores} cores", "set OMP_NUM_THREADS")
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > 0.7 * cores:
        said = f"{load:.1f} processes wanted the {cores} cores in the last minute"
        yield Finding("load", None, said, f"training.num_threads={max(1, cores - 1)} loses least beside others")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Finding(
        "disk", free >= ROOM, f"{free:.0f} GiB free here", "" if free >= ROOM else "free some for checkpoints"
    )
    for requirement in map(Requirement, requires("dynamo-mtl") or []):
        if requirement.marker is None and not _is_met(requirement):
            yield Finding(
                requirement.name,
                False,
                f"not installed as {requirement}",
                "in a checkout: pip install -e .",
            )
    missing = [extra for extra, package in EXTRAS.items() if importlib.util.find_spec(package) is None]
    if missing:
        names = ",".join(missing)
        yield Finding(
            "extras", None, f"not installed: {', '.join(missing)}", f"in a checkout: pip install -e '.[{names}]'"
        )
    yield _try("backbone minilm", lambda: str(find_backbone(MINILM)), "", is_vital=False)


def _is_met(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False


def _configuration(config: SystemConfig, name: str) -> Iterator[Finding]:
    yield Finding("configuration", True, f"{name}: {len(config.tasks)} tasks, {', '.join(config.tasks)}")
    yield _try(
        f"backbone {config.model.base_model_name}",
        lambda: str(find_backbone(config.model.base_model_name, config.model.revision)),
        "",
    )
    try:
        profile = check_data(config, SAMPLE, lambda _: None)
    except DynamoError as error:
        yield Finding("data", False, str(error), f"see: dynamo data check {name}")
        return
    for task, splits in profile.items():
        rows = {split: found.rows for split, found in splits.items()}
        faults = sum(found.rows - found.usable for found in splits.values())
        shown = ", ".join(f"{count} {split}" for split, count in rows.items())
        todo = f"see: dynamo data check {name}" if faults else ""
        is_well = not faults or config.data.bad_rows == "skip"
        yield Finding(f"data of {task}", is_well, f"{shown}, {faults} unusable rows", todo)


def _checkpoint(folder: Path) -> str:
    if not (folder / METADATA).is_file():
        raise DynamoError(f"{folder}: no checkpoint (no {METADATA})")
    system, metadata = load_system(folder, torch.device("cpu"))
    known = "" if system.model.memory is not None else "; remembers no inputs, so no task can be added to it"
    return f"{folder}: whole, {len(system.tasks)} tasks, phase {metadata.phase}, seed {metadata.seed}{known}"


def _try(what: str, look: Callable[[], str], todo: str, is_vital: bool = True) -> Finding:
    try:
        return Finding(what, True, look())
    except DynamoError as error:
        return Finding(what, False if is_vital else None, str(error), todo)
