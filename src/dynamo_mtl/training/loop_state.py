"""Saves the state of a run between two optimizer steps, so that a killed run resumes as if nothing had happened.

A state is a checkpoint of the model with two more files: ``loop.safetensors`` (AdamW's moments, the best validated
parameters, random state, terms that are not logged yet) and ``loop.json`` (how far the run is). The training data of a
step needs no state, because it is a pure function of the seed and the step.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynamo_mtl.distributed import gather, world
from dynamo_mtl.errors import CheckpointError
from dynamo_mtl.storage import remove_folder, verify_folder

logger = logging.getLogger(__name__)

TENSORS, NUMBERS = "loop.safetensors", "loop.json"
FORMAT = 3
PREFIX = "state-"


@dataclass(frozen=True)
class LoopState:
    """How far a run is, and everything that it needs to continue from there."""

    stage: int
    """Number of completed stages."""
    step: int
    """Number of completed steps of the current stage."""
    phases: list[int]
    """The phases that the run was started for."""
    seconds: float
    """Training time so far."""
    log_end: tuple[int, int]
    """Length of the metrics log, in bytes and in lines."""
    threads: int = 1
    """CPU threads of a forward pass. Another number would round sums differently."""
    numbers: dict[str, Any] = field(default_factory=dict)
    """State of the loop and of the phase, as JSON."""
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def folder_name(self) -> str:
        """Name of the state's folder; names sort by age."""
        return f"{PREFIX}{self.stage:03d}-{self.step:08d}"

    def write(self, folder: Path) -> None:
        """Write the two files."""
        numbers = {**self.__dict__, "format": FORMAT}
        del numbers["tensors"]
        (folder / NUMBERS).write_text(json.dumps(numbers) + "\n", encoding="utf-8")
        # Clone, because safetensors refuses two names for the same memory.
        save_file({name: t.detach().cpu().contiguous().clone() for name, t in self.tensors.items()}, folder / TENSORS)


def read_state(folder: Path) -> LoopState:
    """Read the two files of a state whose folder has been verified. Raises ``CheckpointError`` if they do not fit."""
    try:
        raw = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
        if raw.pop("format") != FORMAT:
            raise CheckpointError(f"{folder / NUMBERS}: not of format {FORMAT}; it was written by another version")
        return LoopState(**raw, tensors=load_file(folder / TENSORS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: not the state of a run ({error})") from error


def newest_state(parent: Path) -> Path | None:
    """Return the newest intact state, or None if there are no states. Damaged ones are skipped with a warning.

    Raises:
        CheckpointError: there are states, and all of them are damaged.
    """
    found = sorted(parent.glob(f"{PREFIX}*"), reverse=True)
    for folder in found:
        try:
            verify_folder(folder)
        except CheckpointError as error:
            logger.warning("passed over: %s", error)
        else:
            return folder
    if found:
        raise CheckpointError(f"{parent}: all {len(found)} states of the run are damaged; start it anew without them")
    return None


def rotate(parent: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` states; call it after writing one."""
    for folder in sorted(parent.glob(f"{PREFIX}*"))[:-keep]:
        remove_folder(folder)


def random_state() -> dict[str, Tensor]:
    """The random generators of all processes of the job."""
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    return {f"random.{rank}.{kind}": s for rank, states in enumerate(gather(own)) for kind, s in states.items()}


def restore_random_state(tensors: dict[str, Tensor]) -> None:
    """Restore the random generators of this process, if the run was saved by the same number of processes."""
    rank = world()
    if f"random.{rank.size - 1}.cpu" not in tensors or f"random.{rank.size}.cpu" in tensors:
        logger.warning("the run was saved by another number of processes: it goes on with other dropout masks")
        return
    torch.set_rng_state(tensors[f"random.{rank.number}.cpu"])
    if torch.cuda.is_available() and f"random.{rank.number}.cuda" in tensors:
        torch.cuda.set_rng_state(tensors[f"random.{rank.number}.cuda"])
