"""The training objective ``Σ weight_i · term_i``. Every term is a named function, logged under its name.

To add a term, register it and give it a weight under ``training.term_weights``::

    @register_term("sharpness")
    def sharpness(inputs: RoutingTerms) -> Tensor:
        return 1 - inputs.weights.max(dim=1).values.mean()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynamo_mtl.config.training_config import TrainingConfig
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.messages import did_you_mean

TASK = "task"
"""Name of the loss on the model's answers. All other terms depend on the routing alone."""


LOSS = "loss"
"""The weighted sum of all terms, logged beside them."""


@dataclass(frozen=True)
class RoutingTerms:
    """The inputs of a routing term: the routing of the whole batch of one update."""

    logits: Tensor
    """``(examples, adapters)`` before the temperature."""
    weights: Tensor
    """``(examples, adapters)`` routing probabilities."""
    routes: Tensor
    """``(examples,)`` the adapter that each example belongs to."""
    second: Tensor
    """``(examples, adapters)`` routing of the same inputs under another dropout mask."""
    twins: Tensor
    """``(pairs, 2)`` pairs of examples that are the same input under two instructions."""
    temperature: Tensor
    scheduled_log_temperature: Tensor


Term = Callable[[RoutingTerms], Tensor]
TERMS: dict[str, Term] = {}


def register_term(name: str, term: Term | nn.Module | None = None) -> Callable[[Term], Term]:
    """Register a routing term, as a call or as a decorator.

    Args:
        name: key of its weight under ``training.term_weights`` and of its value in the logs.
        term: a function of ``RoutingTerms``, or an ``nn.Module`` with ``forward(predictions, targets, **kwargs)``,
            which is given the routing probabilities, the true adapters, and ``inputs=RoutingTerms``.
    """

    def register(function: Term) -> Term:
        TERMS[name] = function
        return function

    if isinstance(term, nn.Module):
        module = term
        register(lambda inputs: module(inputs.weights, inputs.routes, inputs=inputs))
    elif term is not None:
        register(term)
    return register


@register_term("routing")
def routing(inputs: RoutingTerms) -> Tensor:
    """Cross entropy of the routing with the known task."""
    return nn.functional.nll_loss(inputs.weights.clamp_min(1e-9).log(), inputs.routes)


@register_term("smoothing")
def smoothing(inputs: RoutingTerms) -> Tensor:
    """Mean cross entropy of the routing with the uniform distribution, ``-(Σ_k log w_k) / K``.

    Together with ``routing`` at weight 1, a weight of ``ε / (1 - ε)`` is label smoothing of ε up to a constant factor
    (Szegedy et al. 2016, arXiv 1512.00567, section 7).
    """
    return -inputs.weights.clamp_min(1e-9).log().mean()


@register_term("load_balance")
def load_balance(inputs: RoutingTerms) -> Tensor:
    """Divergence ``Σ_k m_k log(m_k / p_k)`` between the batch's true task mix m and its mean routing p.

    A uniform target would work against an unequal mix. In this direction, the divergence is finite even for tasks that
    are not in the batch.
    """
    mix = torch.bincount(inputs.routes, minlength=inputs.weights.shape[1]).to(inputs.weights) / len(inputs.routes)
    mean = inputs.weights.mean(dim=0).clamp_min(1e-9)
    return (torch.xlogy(mix, mix) - mix * mean.log()).sum()


@register_term("efficiency")
def efficiency(inputs: RoutingTerms) -> Tensor:
    """Mean effective number of adapters in use, ``1 / Σ_k w_k²``, minus the one that is needed."""
    return (1 / inputs.weights.square().sum(dim=1)).mean() - 1


@register_term("consistency")
def consistency(inputs: RoutingTerms) -> Tensor:
    """Symmetric KL divergence between two views of an input: two dropout masks, or two instructions."""
    views = [_symmetric_kl(inputs.weights, inputs.second)]
    if len(inputs.twins):
        first, second = inputs.weights[inputs.twins[:, 0]], inputs.weights[inputs.twins[:, 1]]
        views.append(_symmetric_kl(first, second))
    return torch.stack(views).sum()


def _symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    difference = first.clamp_min(1e-9).log() - second.clamp_min(1e-9).log()
    return ((first - second) * difference).sum(dim=1).mean() / 2


@register_term("entropy")
def entropy(inputs: RoutingTerms) -> Tensor:
    """Mean entropy of the routing, in nats."""
    return -torch.xlogy(inputs.weights, inputs.weights).sum(dim=1).mean()


@register_term("temperature")
def temperature(inputs: RoutingTerms) -> Tensor:
    """``(log T - log T_schedule)²``: keeps a learned temperature near its schedule."""
    return (inputs.temperature.log() - inputs.scheduled_log_temperature).square()


@register_term("z_loss")
def z_loss(inputs: RoutingTerms) -> Tensor:
    """Mean squared log-partition of the logits (ST-MoE, Zoph et al. 2022, arXiv 2202.08906, eq. 5)."""
    return torch.logsumexp(inputs.logits, dim=1).square().mean()


class Objective:
    """Weighted terms of a configuration."""

    def __init__(self, config: TrainingConfig) -> None:
        unknown = [name for name in config.term_weights if name not in TERMS]
        if unknown:
            raise ConfigError(
                f"training.term_weights.{unknown[0]}: no such term is registered; {did_you_mean(unknown[0], TERMS)}"
            )
        built_in = [name for name in config.term_weights if hasattr(config, f"{name}_weight")]
        if built_in:
            raise ConfigError(f"training.term_weights.{built_in[0]}: use training.{built_in[0]}_weight")
        own = {name: getattr(config, f"{name}_weight") for name in TERMS if hasattr(config, f"{name}_weight")}
        if not config.routing_weight and not config.task_weight:
            raise ConfigError("training: routing_weight and task_weight are both 0, so nothing would train the router")
        self.task_weight = config.task_weight
        self.weights: Mapping[str, float] = {n: w for n, w in {**own, **config.term_weights}.items() if w > 0}

    def routing_terms(self, inputs: RoutingTerms) -> dict[str, Tensor]:
        """The value of every routing term that has a weight."""
        return {name: TERMS[name](inputs) for name in self.weights}

    def total(self, terms: Mapping[str, Tensor], device: torch.device) -> Tensor:
        """Weighted sum of routing terms."""
        start = torch.zeros((), device=device)
        return sum((self.weights[name] * value for name, value in terms.items()), start=start)
