"""Analyze a trained router: where it sends inputs, what it looks at, and when it should not be trusted.

The results are numbers, warnings in words, and pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamo_mtl.config.system_config import SystemConfig
from dynamo_mtl.errors import DataError
from dynamo_mtl.evaluation.analysis import (
    RoutedInputs,
    adapter_similarity,
    correlations,
    feature_map,
    input_properties,
    instructions_followed,
    remarkable_inputs,
    risk_curve,
)
from dynamo_mtl.evaluation.inputs import make_routed_inputs, task_examples
from dynamo_mtl.evaluation.result_figures import (
    correlation_picture,
    map_picture,
    reliability_picture,
    risk_coverage_picture,
    similarity_picture,
    usage_picture,
)
from dynamo_mtl.figures import Picture, confusion_picture, save_pictures
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.metrics.routing import (
    CALIBRATION_BINS,
    collapse_warnings,
    confusion_matrix,
    reliability_bins,
    routing_scores,
)
from dynamo_mtl.model.batch import Window, build_batch, to_device
from dynamo_mtl.model.calibration import Calibration
from dynamo_mtl.model.dynamo import DynamoModel


@dataclass
class RoutingAnalyzer:
    """Collects routing decisions of a model."""

    model: DynamoModel
    task_names: list[str]
    calibration: Calibration = field(default_factory=Calibration)
    analysis: dict[str, Any] | None = None
    """Result of the last analysis."""

    @torch.inference_mode()
    def analyze_routing_decisions(self, dataloader: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Route everything that a data loader yields.

        Args:
            dataloader: batches with padded ``input_ids`` and ``attention_mask`` ``(rows, length)``, and ``task``
                (names) or ``task_ids`` (numbers in the order of ``task_names``). Optional keys: ``example_ids`` join
                neighbouring rows into one input of several windows; ``text`` is analyzed and shown; results are also
                reported by ``instruction`` (which may be None) and by ``kind`` (such as plain or conflicting).

        Returns:
            The scores of ``routing_scores``, and ``confusion``, mean ``probabilities`` of each task's inputs, ``kinds``
            (scores of each), ``usage`` of the adapters, ``correlations`` with properties of the input, ``reliability``,
            ``risk_coverage``, ``adapter_similarity``, ``map``, ``wordings``, ``hardest`` and ``confusing`` inputs, and
            ``warnings`` in words. All of it can be written as JSON.

        Raises:
            DataError: a batch without tasks, or no batch at all.
        """
        self.model.eval()
        inputs = self._read(dataloader)
        logits = self.model.router(inputs.features).logits / self.model.router.temperature
        probabilities = self.calibration.probabilities(logits).cpu().numpy()
        familiarity = self.model.ood.familiarity(inputs.features).cpu().numpy()
        truth = inputs.tasks
        predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
        correct = predicted == truth
        rejected = (confidence < self.calibration.threshold) | (familiarity < self.calibration.familiarity)
        names = self.task_names
        kinds = {kind: np.array([k == kind for k in inputs.kinds]) for kind in dict.fromkeys(inputs.kinds)}
        mix = np.bincount(truth, minlength=len(names)) / len(truth)
        self.analysis = {
            **routing_scores(probabilities, truth.tolist(), rejected.tolist()),
            "tasks": names,
            "confusion": confusion_matrix(predicted.tolist(), truth.tolist(), len(names)),
            "probabilities": {names[t]: probabilities[truth == t].mean(axis=0).tolist() for t in np.unique(truth)},
            "kinds": {
                kind: routing_scores(probabilities[own], truth[own].tolist(), rejected[own].tolist())
                for kind, own in kinds.items()
            },
            "usage": {
                name: {
                    "inputs": float(mix[i]),
                    "weight": float(probabilities[:, i].mean()),
                    "chosen": float((predicted == i).mean()),
                }
                for i, name in enumerate(names)
            },
            "correlations": correlations(input_properties(inputs), probabilities, correct, names),
            "reliability_bins": CALIBRATION_BINS,
            "reliability": {kind: reliability_bins(confidence[own], correct[own]) for kind, own in kinds.items()},
            "risk_coverage": {kind: risk_curve(confidence[own], correct[own]) for kind, own in kinds.items()},
            "adapter_similarity": adapter_similarity(self.model),
            "map": feature_map(inputs.features, truth, names),
            "wordings": instructions_followed(inputs, correct),
            **remarkable_inputs(inputs, probabilities, familiarity, names),
            "warnings": collapse_warnings(probabilities, truth.tolist(), names),
        }
        return self.analysis

    def _read(self, dataloader: Iterable[Mapping[str, Any]]) -> RoutedInputs:
        device = next(self.model.parameters()).device
        found = RoutedInputs(torch.empty(0), np.empty(0, dtype=int), [], [], [], [])
        features: list[Tensor] = []
        tasks: list[int] = []
        for batch in dataloader:
            rows = [
                ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
            ]
            examples = [int(e) for e in batch.get("example_ids", range(len(rows)))]
            starts = [row for row in range(len(rows)) if row == 0 or examples[row] != examples[row - 1]]
            numbers = np.cumsum([row in set(starts) for row in range(len(rows))]) - 1
            windows = [Window(ids, int(number), deep=False) for ids, number in zip(rows, numbers, strict=True)]
            first_position = self.model.encoder.config.first_position
            packed = to_device(build_batch(windows, [], first_position, self.model.variable_length), device)
            features.append(self.model.trunk(packed).features)
            of_rows = self._tasks(batch)
            tasks += [of_rows[row] for row in starts]
            for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
                found.tokens.append([token for ids in rows[start:end] for token in ids])
            for values, key, default in (
                (found.texts, "text", None),
                (found.instructions, "instruction", None),
                (found.kinds, "kind", "all"),
            ):
                given = batch.get(key)
                values += [default if given is None else given[row] for row in starts]
        if not features:
            raise DataError("the data loader of the routing analysis is empty")
        return RoutedInputs(
            torch.cat(features), np.array(tasks), found.tokens, found.texts, found.instructions, found.kinds
        )

    def _tasks(self, batch: Mapping[str, Any]) -> list[int]:
        if "task_ids" in batch:
            return torch.as_tensor(batch["task_ids"]).tolist()
        if "task" in batch:
            return [self.task_names.index(name) for name in batch["task"]]
        raise DataError(f"a batch of the routing analysis needs 'task' or 'task_ids', found {', '.join(batch)}")

    def pictures(self) -> list[Picture]:
        """Return the pictures of the last analysis."""
        if self.analysis is None:
            raise DataError("there is nothing to draw yet: call analyze_routing_decisions first")
        return analysis_pictures(self.analysis)

    def visualize_routing_patterns(self, folder: str | Path) -> list[Path]:
        """Draw the last analysis into ``folder`` and return the paths of the pictures."""
        return save_pictures(self.pictures(), Path(folder))


def create_routing_analyzer(model: DynamoInference | DynamoModel, task_names: Sequence[str]) -> RoutingAnalyzer:
    """Make an analyzer for a model and the names of its tasks, in the order of the router's outputs."""
    inner = model.system.model if isinstance(model, DynamoInference) else model
    if list(task_names) != inner.task_names:
        raise DataError(f"task_names: the model's tasks are {inner.task_names}, found {list(task_names)}")
    calibration = model.predictor.calibration if isinstance(model, DynamoInference) else Calibration()
    return RoutingAnalyzer(inner, list(task_names), calibration)


def analyze_checkpoint(checkpoint: Path, config: SystemConfig, split: str, limit: int = 500) -> dict[str, Any]:
    """Analyze the router of a checkpoint on ``limit`` examples of each task; see ``analyze_routing_decisions``."""
    model = DynamoInference(checkpoint, config)
    loader = routing_dataloader(model, split, limit=limit)
    return create_routing_analyzer(model, model.task_names).analyze_routing_decisions(loader)


def routing_dataloader(
    model: DynamoInference, split: str = "validation", batch_size: int = 64, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """Padded batches of plain, instructed and conflicting inputs, as the analyzer reads them.

    Args:
        model: whose tasks and data are used.
        split: of the data.
        batch_size: inputs in a batch.
        limit: most examples of each task to make inputs from.
    """
    system = model.system
    seed = model.metadata.seed
    examples = {name: task_examples(system, name, split, seed, limit) for name in system.tasks}
    for kind, inputs in make_routed_inputs(system, examples, seed).items():
        for first in range(0, len(inputs), batch_size):
            batch = inputs[first : first + batch_size]
            sources = [system.source.encode(i.input.text, i.input.context, i.input.instruction) for i in batch]
            owners = [number for number, source in enumerate(sources) for _ in source.windows]
            ids = [torch.tensor(window.ids) for source in sources for window in source.windows]
            padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
            lengths = torch.tensor([len(i) for i in ids])
            mask = torch.arange(padded.shape[1])[None, :] < lengths[:, None]
            yield {
                "input_ids": padded,
                "attention_mask": mask.long(),
                "example_ids": owners,
                "task": [batch[o].task for o in owners],
                "text": [batch[o].input.text for o in owners],
                "instruction": [batch[o].input.instruction for o in owners],
                "kind": [kind] * len(owners),
            }


def analysis_pictures(analysis: Mapping[str, Any]) -> list[Picture]:
    """Pictures of what ``analyze_routing_decisions`` returned."""
    return [
        confusion_picture(analysis["confusion"], analysis["tasks"], "inputs of all kinds"),
        usage_picture(analysis["usage"]),
        reliability_picture(analysis["reliability"]),
        risk_coverage_picture(analysis["risk_coverage"]),
        map_picture(analysis["map"]),
        similarity_picture(analysis["adapter_similarity"], analysis["tasks"]),
        *([correlation_picture(analysis["correlations"])] if analysis["correlations"] else []),
    ]
