"""Writes the model card, for people and for the hub: what a checkpoint is, its measured quality, and how to use it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from dynamo_mtl.checkpoint.folder import CARD, CONFIG
from dynamo_mtl.checkpoint.metadata import Metadata, read_metadata
from dynamo_mtl.checkpoint.stored_config import read_system_config
from dynamo_mtl.config.system_config import SystemConfig
from dynamo_mtl.errors import CheckpointError
from dynamo_mtl.markdown import markdown_table
from dynamo_mtl.model.backbone import MINILM
from dynamo_mtl.tasks.registry import task_types


@dataclass(frozen=True)
class Measured:
    """The measured quality of a model, as its card shows it."""

    sections: Sequence[str]
    """Paragraphs and tables."""
    limits: Sequence[str] = ()
    """Sentences."""
    entries: Sequence[EvalResult] = ()
    """The same for the hub's ``model-index``."""


UNMEASURED = Measured(["Nothing: no result file was given."])


def write_card(checkpoint: Path, name: str, measured: Measured = UNMEASURED) -> Path:
    """Write a checkpoint's ``README.md``, which its manifest does not cover.

    Args:
        checkpoint: the model.
        name: name of the model, such as ``owner/name``.
        measured: its measured quality.

    Raises:
        CheckpointError: not a checkpoint, or the card cannot be written.
    """
    text = model_card(read_metadata(checkpoint), read_system_config(checkpoint / CONFIG), name, measured)
    try:
        (checkpoint / CARD).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{checkpoint / CARD}: cannot be written ({error.strerror})") from error
    return checkpoint / CARD


def model_card(metadata: Metadata, config: SystemConfig, name: str, measured: Measured) -> str:
    """The card as Markdown with the hub's front matter."""
    data = ModelCardData(
        model_name=name,
        base_model=metadata.backbone if _is_hub_id(metadata.backbone) else None,
        library_name="dynamo-mtl",
        tags=["lora", "multi-task", "routing", "dynamo-mtl"],
        pipeline_tag=task_types()[config.tasks[metadata.tasks[0]].type].hub_task,
        eval_results=list(measured.entries) or None,
    )
    rows = [
        [
            task,
            config.tasks[task].type,
            str(config.lora_configs[task].rank),
            Path(config.data.paths.get(task, "")).name or "unknown",
            str(metadata.dataset_sizes.get(task, "unknown")),
            "yes" if config.tasks[task].requires_instruction else "no",
        ]
        for task in metadata.tasks
    ]
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        f"A [DYNAMO](https://pypi.org/project/dynamo-mtl/) model: one frozen backbone ({Path(metadata.backbone).name}),"
        f" {len(rows)} LoRA adapters and heads, and a router that sends every input to the right one in a single pass"
        f" ({metadata.phase}, seed {metadata.seed}, {metadata.train_seconds / 60:.0f} minutes of training on"
        f" {metadata.device}).",
        "## Tasks",
        markdown_table(["task", "type", "rank", "data", "training examples", "needs an instruction"], rows),
        "## How to use it",
        f'```python\nfrom dynamo_mtl import DynamoInference\n\nmodel = DynamoInference.from_pretrained("{name}")\n'
        'model("A text.")  # the answer, its task, and how sure the router is\n```',
        "Each folder under `adapters/` also opens with `PeftModel.from_pretrained`.",
        "## What was measured",
        *measured.sections,
        "## Limits",
        "\n".join(f"- {limit}" for limit in [*_limits(metadata, config), *measured.limits]),
    ]
    return "\n\n".join(parts) + "\n"


REJECTED = {
    "best_guess": "answered by the likeliest one and marked `rejected`",
    "base": "answered without adapters and marked `rejected`",
    "error": "refused",
}
"""How rejected inputs are handled, by ``router.on_rejection``."""


def _is_hub_id(name: str) -> bool:
    """Whether the name is a hub id of a backbone, and not a local folder or the backbone from a Python package."""
    return name != MINILM and re.fullmatch(r"(?:[\w.-]+/)?[\w.-]+", name) is not None and not Path(name).exists()


def _limits(metadata: Metadata, config: SystemConfig) -> list[str]:
    calibration = metadata.calibration
    said = [
        f"A text longer than {config.data.max_windows} windows of {config.data.max_source_length} tokens is cut.",
        f"Inputs of no task are {REJECTED[config.router.on_rejection]} (confidence below {calibration.threshold:.3f}, "
        f"familiarity below {calibration.familiarity:.4f}).",
    ]
    required = [task for task in metadata.tasks if config.tasks[task].requires_instruction]
    if required:
        said.append(f"{', '.join(required)}: only an instruction tells their inputs from those of other tasks.")
    return said
