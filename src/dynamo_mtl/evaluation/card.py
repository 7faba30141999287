"""The model card: what a checkpoint is, what it was measured to do, and how to use it, for people and for the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from dynamo_mtl.errors import CheckpointError
from dynamo_mtl.evaluation.report import markdown
from dynamo_mtl.evaluation.result import Result
from dynamo_mtl.inference.system import SystemConfig, read_system_config
from dynamo_mtl.model.checkpoint import CARD, CONFIG
from dynamo_mtl.model.metadata import Metadata, read_metadata

HUB_TASKS = {
    "classification": "text-classification",
    "token": "token-classification",
    "qa": "question-answering",
    "summarization": "summarization",
    "translation": "translation",
}
"""Our kinds of answers, or types → the hub's name of the task; text generation for the others."""


def write_card(checkpoint: Path, result: Result | None, name: str) -> Path:
    """Write a checkpoint's ``README.md``, which its manifest leaves free.

    Args:
        checkpoint: the model.
        result: what ``dynamo evaluate`` measured of it, if anything.
        name: of the model, such as ``owner/name``.

    Raises:
        CheckpointError: not a checkpoint.
    """
    text = model_card(read_metadata(checkpoint), read_system_config(checkpoint / CONFIG), result, name)
    try:
        (checkpoint / CARD).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{checkpoint / CARD}: cannot be written ({error.strerror})") from error
    return checkpoint / CARD


def model_card(metadata: Metadata, config: SystemConfig, result: Result | None, name: str) -> str:
    """The card as Markdown with the hub's front matter, ``model-index`` included."""
    kinds = {task: _hub_task(config.tasks[task].type) for task in metadata.tasks}
    data = ModelCardData(
        model_name=name,
        base_model=metadata.backbone,
        library_name="dynamo-mtl",
        tags=["lora", "multi-task", "routing", "dynamo-mtl"],
        pipeline_tag=next(iter(kinds.values())),
        eval_results=None if result is None else _eval_results(result, kinds),
    )
    rows = [
        [
            task,
            config.tasks[task].type,
            str(config.lora_configs[task].rank),
            str(metadata.dataset_sizes.get(task, "unknown")),
            "yes" if config.tasks[task].requires_instruction else "no",
        ]
        for task in metadata.tasks
    ]
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        f"A [DYNAMO](https://pypi.org/project/dynamo-mtl/) model: one frozen backbone ({metadata.backbone}), "
        f"{len(rows)} LoRA adapters and heads, and a router that sends every input to the right one in a single pass.",
        "## Tasks",
        markdown(["task", "type", "rank", "training examples", "needs an instruction"], rows),
        "## How to use it",
        f'```python\nfrom dynamo_mtl import DynamoInference\n\nmodel = DynamoInference.from_pretrained("{name}")\n'
        'model("A text.")  # the answer, its task, and how sure the router is\n```',
        "Each folder under `adapters/` also opens with `PeftModel.from_pretrained`.",
        "## What was measured",
        *(_measured(result) if result is not None else ["Nothing: no result file was given."]),
        "## Limits",
        *_limits(metadata, config, result),
    ]
    return "\n\n".join(parts) + "\n"


def _hub_task(kind: str) -> str:
    kind = "classification" if kind == "sentiment" else "token" if kind == "ner" else kind
    return HUB_TASKS.get(kind, "text-generation")


def _eval_results(result: Result, kinds: Mapping[str, str]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=kinds[task],
            dataset_type=task,
            dataset_name=task,
            dataset_split=result.split,
            metric_type=metric,
            metric_name=f"{metric}, routed",
            metric_value=float(result.systems["dynamo"][task][metric]),
        )
        for task, metric in result.main_metrics.items()
        if "dynamo" in result.systems and task in kinds
    ]


def _measured(result: Result) -> Sequence[str]:
    rows: list[list[str]] = []
    for task, metric in result.main_metrics.items():
        scores = [result.systems.get(system, {}).get(task, {}).get(metric) for system in ("dynamo", "oracle")]
        shown = ["" if score is None else f"{score:.4g}" for score in scores]
        count = next((s[task]["n"] for s in result.systems.values() if task in s), 0)
        rows.append([task, metric, *shown, str(count)])
    table = markdown(["task", "metric", "routed", "told the task", "examples"], rows)
    kinds = [(k, result.routing[k]) for k in ("bare", "instructed", "crossed") if k in result.routing]
    routed = [[kind, f"{s['accuracy']:.4f}", f"{s['worst_task']:.4f}", str(s["n"])] for kind, s in kinds]
    about = (
        f"On the {result.split} split, by the code of revision {result.commit or 'unknown'}, seed {result.seed}, "
        f"{result.train_seconds / 60:.0f} minutes of training on {result.device}."
    )
    return [about, table, *([markdown(["inputs", "routed right", "worst task", "n"], routed)] if routed else [])]


def _limits(metadata: Metadata, config: SystemConfig, result: Result | None) -> list[str]:
    calibration = metadata.calibration
    said: list[Any] = [
        f"- A text longer than {config.data.max_windows} windows of {config.data.max_source_length} tokens is cut.",
        "- Inputs of no task are answered by the likeliest one and marked `rejected`"
        f" (confidence below {calibration.threshold:.3f}, familiarity below {calibration.familiarity:.4f}).",
    ]
    required = [task for task in metadata.tasks if config.tasks[task].requires_instruction]
    if required:
        said.append(f"- {', '.join(required)}: only an instruction tells their inputs from those of other tasks.")
    if result is not None and "oracle" in result.systems and "dynamo" in result.systems:
        said.append("- The difference between the two columns of scores is what wrong routes cost.")
    return ["\n".join(said)]
