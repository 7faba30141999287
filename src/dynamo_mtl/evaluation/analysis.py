"""Compute statistics of routed inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamo_mtl.metrics.routing import (
    risk_coverage,
)
from dynamo_mtl.model.dynamo import DynamoModel
from dynamo_mtl.model.encoder import SITES

SHOWN = 12
"""Examples that are listed as hardest and as most confusing."""
MAPPED = 300
"""Inputs of each task in the map."""
POINTS = 200
"""Most points of a risk-coverage curve."""
FUNCTION_WORDS = frozenset(
    re.findall(r"\w+", "a an and are as at be by for from has in is it of on or that the this to was were with")
)
"""Their share of the words tells English prose from code and from other languages."""


@dataclass(frozen=True)
class RoutedInputs:
    """Inputs from a data loader, one element per input."""

    features: Tensor
    tasks: np.ndarray
    tokens: list[list[int]]
    texts: list[str | None]
    instructions: list[str | None]
    kinds: list[str]


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


def input_properties(inputs: RoutedInputs) -> dict[str, np.ndarray]:
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


def correlations(
    properties: Mapping[str, np.ndarray], probabilities: np.ndarray, correct: np.ndarray, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Pearson correlation of each property with each task's probability, the confidence and correct routing."""
    targets = {name: probabilities[:, i] for i, name in enumerate(names)}
    targets |= {"confidence": probabilities.max(axis=1), "routed right": correct.astype(float)}
    return {
        name: {
            target: float(np.corrcoef(values, other)[0, 1]) if other.std() > 0 else 0.0
            for target, other in targets.items()
        }
        for name, values in properties.items()
    }


def risk_curve(confidence: np.ndarray, correct: np.ndarray) -> dict[str, list[float]]:
    """Coverage and risk, at ``POINTS`` places at most."""
    coverage, risk = risk_coverage(confidence, correct)
    kept = np.unique(np.linspace(0, len(risk) - 1, min(POINTS, len(risk))).astype(int))
    return {"coverage": coverage[kept].tolist(), "risk": risk[kept].tolist()}


def feature_map(features: Tensor, truth: np.ndarray, names: Sequence[str]) -> dict[str, list[list[float]]]:
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


def instructions_followed(inputs: RoutedInputs, correct: np.ndarray) -> list[dict[str, Any]]:
    """How often each instruction was followed, the worst ones first."""
    found: dict[str, list[bool]] = {}
    for instruction, right in zip(inputs.instructions, correct.tolist(), strict=True):
        if instruction is not None:
            found.setdefault(instruction, []).append(right)
    rows = [{"instruction": w, "accuracy": float(np.mean(rights)), "n": len(rights)} for w, rights in found.items()]
    return sorted(rows, key=lambda row: (row["accuracy"], -row["n"]))


def remarkable_inputs(
    inputs: RoutedInputs, probabilities: np.ndarray, familiarity: np.ndarray, names: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Return the inputs whose own task has the lowest probability, and those closest to a tie of two tasks."""
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
