"""Systems to compare routing with. Each is a model with a function that chooses the adapter of an input.

Some functions are given the true task. Others choose without any training:

- nearest centroid: the task whose mean trunk feature is nearest
- Arrow: the adapter whose own directions the hidden states point along (Ostapenko et al. 2024, arXiv 2405.11157)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import Prediction, TextInput
from dynamo_mtl.model.batch import Batch
from dynamo_mtl.model.dynamo import DynamoModel, Trunk
from dynamo_mtl.model.encoder import SITES, PackedAttention
from dynamo_mtl.model.router import top_k_weights
from dynamo_mtl.system import System


@dataclass(frozen=True)
class Choice:
    """The heads and adapters that answer some inputs."""

    tasks: list[str]
    """For each input, the task whose head answers, and whose adapter is used if ``weights`` is None."""
    weights: Tensor | None = None
    """``(inputs, adapters)`` mixing weights."""


Choose = Callable[[Sequence[TextInput], Sequence[str]], Choice]
"""Function that chooses for inputs and their true tasks. Only some such functions use the true tasks."""


@dataclass(frozen=True)
class ComparedSystem:
    """A model with a way to choose the adapter."""

    predictor: Predictor
    choose: Choose
    routed: bool = False
    """Whether the model's own router chooses, in the pass that answers."""

    def answer(self, inputs: Sequence[TextInput], tasks: Sequence[str]) -> list[Prediction]:
        """Choose and answer, as in normal use. The true ``tasks`` are only for systems that are given them."""
        if self.routed:
            return self.predictor.predict(inputs)
        choice = self.choose(inputs, tasks)
        return self.predictor.predict(inputs, choice.tasks, choice.weights)


def choose_oracle(inputs: Sequence[TextInput], tasks: Sequence[str]) -> Choice:
    """Oracle routing: the true task."""
    return Choice(list(tasks))


def choose_by_router(predictor: Predictor) -> Choose:
    """The router's likeliest task."""
    return _choose_likeliest(
        predictor.system, lambda inputs: torch.tensor([route.probabilities for route in predictor.route(inputs)])
    )


def choose_random(system: System, seed: int) -> Choose:
    """Choose a task at random, all with equal probability."""
    rng = np.random.default_rng([seed, 21])
    names = list(system.tasks)
    return lambda inputs, _: Choice([names[i] for i in rng.integers(len(names), size=len(inputs))])


def mix_uniformly(system: System) -> Choose:
    """All adapters with equal weights, and the true task's head, since no head can be mixed with another."""
    count = len(system.tasks)
    return lambda inputs, tasks: Choice(list(tasks), torch.full((len(inputs), count), 1 / count))


def without_adapters(system: System) -> Choose:
    """The frozen backbone alone under the true task's head."""
    return lambda inputs, tasks: Choice(list(tasks), torch.zeros(len(inputs), len(system.tasks)))


def mix_softly(predictor: Predictor, top_k: int) -> Choose:
    """The router's ``top_k`` likeliest adapters by its own weights, and the head of the likeliest task."""
    model = predictor.system.model

    def choose(inputs: Sequence[TextInput], _: Sequence[str]) -> Choice:
        weights = predictor.read(inputs, lambda _, trunk: model.router(trunk.features).weights)
        return Choice(_names(predictor.system, weights), top_k_weights(weights, top_k))

    return choose


def choose_nearest_centroid(predictor: Predictor, training: Mapping[str, Sequence[TextInput]]) -> Choose:
    """The task whose training inputs' mean feature has the largest cosine with the input's.

    Args:
        predictor: whose trunk is read; features are normalised first, as the router's are.
        training: some training inputs of each task.
    """

    def features(inputs: Sequence[TextInput]) -> Tensor:
        return predictor.read(inputs, lambda _, trunk: F.layer_norm(trunk.features, trunk.features.shape[1:]))

    centroids = torch.stack([features(inputs).mean(dim=0) for inputs in training.values()])

    def similarity(inputs: Sequence[TextInput]) -> Tensor:
        return F.normalize(features(inputs), dim=1) @ F.normalize(centroids, dim=1).T

    return _choose_likeliest(predictor.system, similarity)


def choose_by_arrow(predictor: Predictor) -> Choose:
    """The adapter whose main input directions the frozen model's hidden states point along most.

    Arrow scores every token at every layer by ``|x · v|``, v the first right singular vector of the adapter's B A, and
    mixes there. An input needs one head, so the tokens' softmaxed scores are averaged over an input, over all layers
    and over the sites that every adapter has; the states are those of a pass without adapters.
    """
    model = predictor.system.model

    def scores(batch: Batch, trunk: Trunk) -> Tensor:
        probe = ArrowProbe(model, batch)
        attention = PackedAttention(batch.trunk_plan, model.encoder.config.num_heads)
        model.encoder.run(trunk.hidden, attention, model.tap_layer, model.encoder.config.num_layers, probe)
        return probe.scores

    return _choose_likeliest(predictor.system, lambda inputs: predictor.read(inputs, scores))


class ArrowProbe:
    """Takes the place of the adapters, adds nothing, and records how well inputs match each adapter's direction.

    Attributes:
        scores: ``(examples, adapters)``, higher for adapters that fit better.
    """

    def __init__(self, model: DynamoModel, batch: Batch) -> None:
        self.directions = {
            (layer, site): directions
            for layer in range(model.tap_layer, model.encoder.config.num_layers)
            for site in SITES
            if (directions := main_directions(model, layer, site)) is not None
        }
        self.examples = batch.examples.index_select(0, batch.windows)
        self.scores = torch.zeros(batch.example_count, len(model.task_names), device=batch.ids.device)

    def __call__(self, layer: int, sites: Sequence[str], inputs: Tensor, output: Tensor) -> Tensor:
        """See ``encoder.Adapters``: adds nothing."""
        for site in sites:
            if (layer, site) in self.directions:
                met = (inputs[: len(self.examples)].float() @ self.directions[layer, site].T).abs().softmax(dim=1)
                tokens = torch.bincount(self.examples, minlength=len(self.scores))
                self.scores.index_add_(0, self.examples, met / tokens[self.examples, None])
        return output

    def act_at(self, layer: int, site: str) -> bool:
        """See ``encoder.Adapters``."""
        return (layer, site) in self.directions


def main_directions(model: DynamoModel, layer: int, site: str) -> Tensor | None:
    """First right singular vector of every adapter's B A: ``(adapters, in)``; None where one has no adapter there."""
    directions: list[Tensor] = []
    for name in model.task_names:
        pair = model.bank[name].pair(layer, site)
        if pair is None:
            return None
        down, up = pair
        # A = Rᵀ Qᵀ, so the right singular vectors of B A are those of the small B Rᵀ, turned by Q.
        basis, triangle = torch.linalg.qr(down.detach().float().T)
        _, _, right = torch.linalg.svd(up.detach().float() @ triangle.T, full_matrices=False)
        directions.append(basis @ right[0])
    return torch.stack(directions)


def _choose_likeliest(system: System, score: Callable[[Sequence[TextInput]], Tensor]) -> Choose:
    return lambda inputs, _: Choice(_names(system, score(inputs)))


def _names(system: System, scores: Tensor) -> list[str]:
    names = list(system.tasks)
    return [names[best] for best in scores.argmax(dim=1).tolist()]
