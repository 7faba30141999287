"""Turn a result file into the figures of a model card."""

from __future__ import annotations

from huggingface_hub import EvalResult

from dynamo_mtl.checkpoint.card import Measured
from dynamo_mtl.checkpoint.metadata import Metadata
from dynamo_mtl.config.system_config import SystemConfig
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.evaluation.report import has_shift, shift_rows
from dynamo_mtl.evaluation.result import Result
from dynamo_mtl.markdown import markdown_table
from dynamo_mtl.router_inputs import InputKind
from dynamo_mtl.tasks.registry import task_types


def measured(result: Result, metadata: Metadata, config: SystemConfig) -> Measured:
    """Return the figures of a result file for a model's card.

    Raises:
        ConfigError: the result belongs to another model.
    """
    of_result = {"backbone": result.backbone, "seed": result.seed, "revision": result.commit,
                 "tasks": sorted(result.main_metrics)}  # fmt: skip
    of_model = {"backbone": metadata.backbone, "seed": metadata.seed, "revision": metadata.commit,
                "tasks": sorted(metadata.tasks)}  # fmt: skip
    for what, found in of_result.items():
        if found != of_model[what]:
            raise ConfigError(f"--result: is of a model with the {what} {found!r}, this one's is {of_model[what]!r}")
    rows: list[list[str]] = []
    for task, metric in result.main_metrics.items():
        scores = [result.systems.get(system, {}).get(task, {}).get(metric) for system in ("dynamo", "oracle")]
        shown = ["" if score is None else f"{score:.4g}" for score in scores]
        count = next((s[task]["n"] for s in result.systems.values() if task in s), 0)
        rows.append([task, metric, *shown, str(count)])
    table = markdown_table(["task", "metric", "routed", "given the task", "examples"], rows)
    kinds = [(kind.shown, result.routing[kind]) for kind in InputKind if kind in result.routing]
    routed = [[kind, f"{s['accuracy']:.4f}", f"{s['worst_task']:.4f}", str(s["n"])] for kind, s in kinds]
    about = (
        f"On the {result.split} split, by the code of revision {result.commit or 'unknown'}, seed {result.seed}, "
        f"{result.train_seconds / 60:.0f} minutes of training on {result.device}."
    )
    routing = [markdown_table(["inputs", "routed right", "worst task", "n"], routed)] if routed else []
    routing += [markdown_table(*shift_rows(result.shift))] if has_shift(result) else []
    compared = {"oracle", "dynamo"} <= result.systems.keys()
    limits = ["The difference between the two columns of scores is what wrong routes cost."] if compared else []
    return Measured([about, table, *routing], limits, _entries(result, config))


def _entries(result: Result, config: SystemConfig) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=task_types()[config.tasks[task].type].hub_task,
            dataset_type=task,
            dataset_name=task,
            dataset_split=result.split,
            metric_type=metric,
            metric_name=f"{metric}, routed",
            metric_value=float(result.systems["dynamo"][task][metric]),
        )
        for task, metric in result.main_metrics.items()
        if "dynamo" in result.systems and task in config.tasks
    ]
