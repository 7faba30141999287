"""The routing analyzer: where a trained router sends the inputs of a data loader, what it seems to look at, and when it
should not be trusted. In numbers, warnings in words, and pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamo_mtl.errors import DataError
from dynamo_mtl.evaluation.inputs import make_routed_inputs, task_examples
from dynamo_mtl.evaluation.pictures import (
    correlation_picture,
    map_picture,
    reliability_picture,
    risk_coverage_picture,
    similarity_picture,
    usage_picture,
)
from dynamo_mtl.inference.pipeline import DynamoInference
from dynamo_mtl.inference.system_config import SystemConfig
from dynamo_mtl.metrics.routing import (
    CALIBRATION_BINS,
    collapse_warnings,
    confusion_matrix,
    reliability_bins,
    risk_coverage,
    routing_scores,
)
from dynamo_mtl.model.batch import Window, build_batch
from dynamo_mtl.model.calibration import Calibration
from dynamo_mtl.model.dynamo import DynamoModel
from dynamo_mtl.model.encoder import SITES
from dynamo_mtl.model.packing import to_device
from dynamo_mtl.pictures import Picture, confusion_picture, save_pictures

SHOWN = 12
"""Examples that are listed as hardest and as most confusing."""
MAPPED = 300
"""Inputs of each task in the map."""
POINTS = 200
"""Of a risk-coverage curve."""
FUNCTION_WORDS = frozenset(
    re.findall(r"\w+", "a an and are as at be by for from has in is it of on or that the this to was were with")
)
"""Their share of the words tells English prose from code and from other languages."""


@dataclass(frozen=True)
class _Inputs:
    """What a data loader gave, an element for every input."""

    features: Tensor
    tasks: np.ndarray
    tokens: list[list[int]]
    texts: list[str | None]
    instructions: list[str | None]
    kinds: list[str]


@dataclass
class RoutingAnalyzer:
    """Collects routing decisions of a model."""

    model: DynamoModel
    task_names: list[str]
    calibration: Calibration = field(default_factory=Calibration)
    analysis: dict[str, Any] | None = None
    """The last one."""

    @torch.inference_mode()
    def analyze_routing_decisions(self, dataloader: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Route everything that a data loader yields.

        Args:
            dataloader: batches with padded ``input_ids`` and ``attention_mask`` ``(rows, length)``, and ``task``
                (names) or ``task_ids`` (numbers in the order of ``task_names``). If given, ``example_ids`` join
                neighbouring rows to one input of several windows; ``text`` is shown and looked at; ``instruction``
                (or None) and ``kind`` (such as bare or crossed) are told apart.

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
        familiarity = self.model.novelty.familiarity(inputs.features).cpu().numpy()
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
            "correlations": _correlations(_properties(inputs), probabilities, correct, names),
            "reliability_bins": CALIBRATION_BINS,
            "reliability": {kind: reliability_bins(confidence[own], correct[own]) for kind, own in kinds.items()},
            "risk_coverage": {kind: _curve(confidence[own], correct[own]) for kind, own in kinds.items()},
            "adapter_similarity": adapter_similarity(self.model),
            "map": _map(inputs.features, truth, names),
            "wordings": _wordings(inputs, correct),
            **_remarkable(inputs, probabilities, familiarity, names),
            "warnings": collapse_warnings(probabilities, truth.tolist(), names),
        }
        return self.analysis

    def _read(self, dataloader: Iterable[Mapping[str, Any]]) -> _Inputs:
        device = next(self.model.parameters()).device
        found = _Inputs(torch.empty(0), np.empty(0, dtype=int), [], [], [], [])
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
        return _Inputs(torch.cat(features), np.array(tasks), found.tokens, found.texts, found.instructions, found.kinds)

    def _tasks(self, batch: Mapping[str, Any]) -> list[int]:
        if "task_ids" in batch:
            return torch.as_tensor(batch["task_ids"]).tolist()
        if "task" in batch:
            return [self.task_names.index(name) for name in batch["task"]]
        raise DataError(f"a batch of the routing analysis needs 'task' or 'task_ids', found {', '.join(batch)}")

    def pictures(self) -> list[Picture]:
        """Of the last analysis."""
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
    """Padded batches of bare, instructed and crossed inputs, as the analyzer reads them.

    Args:
        model: whose tasks and data are used.
        split: of the data.
        batch_size: inputs in a batch.
        limit: most examples of each task that inputs are made of.
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


@torch.no_grad()
def adapter_similarity(model: DynamoModel) -> list[list[float]]:
    """Cosine similarity of the adapters' weight changes ``B A`` over all sites: ``(adapters, adapters)``.

    Products of whole changes are taken through their factors: ``<B A, D C> = sum((Bᵀ D) * (A Cᵀ))``.
    """
    sites = [(layer, site) for layer in range(model.tap_layer, model.encoder.config.num_layers) for site in SITES]
    pairs = [[model.bank[name].pair(*place) for place in sites] for name in model.task_names]
    products = np.zeros((len(pairs), len(pairs)))
    for i, own in enumerate(pairs):
        for j, other in enumerate(pairs):
            for first, second in zip(own, other, strict=True):
                if first is not None and second is not None:
                    (down, up), (down_2, up_2) = first, second
                    products[i, j] += float(((up.T @ up_2) * (down @ down_2.T)).sum())
    norms = np.sqrt(products.diagonal().clip(min=1e-30))
    return (products / norms[:, None] / norms[None, :]).tolist()


def _properties(inputs: _Inputs) -> dict[str, np.ndarray]:
    """Numbers that describe each input; those that do not vary are left out."""
    found = {
        "length (log tokens)": np.array([np.log(len(ids)) for ids in inputs.tokens]),
        "vocabulary (distinct share)": np.array([len(set(ids[:50])) / len(ids[:50]) for ids in inputs.tokens]),
        "has an instruction": np.array([float(i is not None) for i in inputs.instructions]),
    }
    if all(text is not None for text in inputs.texts):
        words = [re.findall(r"\w+", str(text).lower()) for text in inputs.texts]
        found["language (English function words)"] = np.array(
            [sum(w in FUNCTION_WORDS for w in own) / max(1, len(own)) for own in words]
        )
    return {name: values for name, values in found.items() if values.std() > 0}


def _correlations(
    properties: Mapping[str, np.ndarray], probabilities: np.ndarray, correct: np.ndarray, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Pearson correlation of each property with each task's probability, the confidence and being right."""
    targets = {name: probabilities[:, i] for i, name in enumerate(names)}
    targets |= {"confidence": probabilities.max(axis=1), "routed right": correct.astype(float)}
    return {
        name: {
            target: float(np.corrcoef(values, other)[0, 1]) if other.std() > 0 else 0.0
            for target, other in targets.items()
        }
        for name, values in properties.items()
    }


def _curve(confidence: np.ndarray, correct: np.ndarray) -> dict[str, list[float]]:
    coverage, risk = risk_coverage(confidence, correct)
    kept = np.unique(np.linspace(0, len(risk) - 1, min(POINTS, len(risk))).astype(int))
    return {"coverage": coverage[kept].tolist(), "risk": risk[kept].tolist()}


def _map(features: Tensor, truth: np.ndarray, names: Sequence[str]) -> dict[str, list[list[float]]]:
    """Normalised features along the two main directions between the tasks' means."""
    normal = torch.nn.functional.layer_norm(features, features.shape[1:])
    centered = normal - normal.mean(dim=0)
    present = np.unique(truth)
    means = torch.stack([centered[torch.from_numpy(truth == t)].mean(dim=0) for t in present])
    _, _, directions = torch.linalg.svd(means, full_matrices=False)
    points = (centered @ directions[:2].T).cpu().numpy()
    if points.shape[1] < 2:
        points = np.pad(points, ((0, 0), (0, 1)))
    return {names[int(t)]: points[truth == t][:MAPPED].round(3).tolist() for t in present}


def _wordings(inputs: _Inputs, correct: np.ndarray) -> list[dict[str, Any]]:
    """How often each instruction was followed, the worst ones first."""
    found: dict[str, list[bool]] = {}
    for instruction, right in zip(inputs.instructions, correct.tolist(), strict=True):
        if instruction is not None:
            found.setdefault(instruction, []).append(right)
    rows = [{"instruction": w, "accuracy": float(np.mean(rights)), "n": len(rights)} for w, rights in found.items()]
    return sorted(rows, key=lambda row: (row["accuracy"], -row["n"]))


def _remarkable(
    inputs: _Inputs, probabilities: np.ndarray, familiarity: np.ndarray, names: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Inputs whose own task is thought least likely, and those between two tasks."""
    own = probabilities[np.arange(len(inputs.tasks)), inputs.tasks]
    ranked = np.sort(probabilities, axis=1)
    margin = ranked[:, -1] - ranked[:, -2] if len(names) > 1 else own

    def rows(order: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                "task": names[int(inputs.tasks[i])],
                "kind": inputs.kinds[i],
                "sent_to": names[int(probabilities[i].argmax())],
                "own_probability": float(own[i]),
                "confidence": float(probabilities[i].max()),
                "familiarity": float(familiarity[i]),
                "instruction": inputs.instructions[i],
                "text": inputs.texts[i],
            }
            for i in order[:SHOWN].tolist()
        ]

    return {"hardest": rows(np.argsort(own)), "confusing": rows(np.argsort(margin))}
