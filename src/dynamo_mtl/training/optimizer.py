"""AdamW with a group for every adapter, head and the router, and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from dynamo_mtl.config.training_config import TrainingConfig
from dynamo_mtl.model.dynamo import DynamoModel
from dynamo_mtl.tasks.task_config import TaskConfig

Group = dict[str, Any]


def task_groups(model: DynamoModel, task: str, config: TrainingConfig, lora_lr: float, head_lr: float) -> list[Group]:
    """Parameter groups of one task's adapter (A and B apart, for LoRA+) and head."""
    adapter = model.bank[task]
    decay = config.weight_decay
    return [
        {"params": list(adapter.down.parameters()), "lr": lora_lr, "weight_decay": decay, "task": task},
        {
            "params": list(adapter.up.parameters()),
            "lr": lora_lr * config.loraplus_ratio,
            "weight_decay": decay,
            "task": task,
        },
        {"params": list(model.head(task).parameters()), "lr": head_lr, "weight_decay": 0.0, "task": task},
    ]


def shared_groups(model: DynamoModel, tasks: Mapping[str, TaskConfig], config: TrainingConfig) -> list[Group]:
    """Parameter groups of every head and of what all tasks share: the adapters as one, or the backbone."""
    groups: list[Group] = []
    for task, settings in tasks.items():
        lora_lr, head_lr = config.lora_lr, settings.training.head_lr or config.head_lr
        down, up, head = task_groups(model, task, config, lora_lr, head_lr)
        # Shared adapters act as one: an update of any task changes all of them.
        groups += [{**down, "task": None}, {**up, "task": None}, head] if model.config.adapters == "shared" else [head]
    if not model.config.freeze_backbone:
        parameters = list(model.encoder.parameters())
        for decays in (True, False):
            # Biases and norms are left out of weight decay, as is usual in fine-tuning.
            chosen = [p for p in parameters if (p.dim() > 1) == decays]
            decay = config.weight_decay if decays else 0.0
            groups.append({"params": chosen, "lr": config.backbone_lr, "weight_decay": decay, "task": None})
    return groups


def router_group(model: DynamoModel, learning_rate: float, config: TrainingConfig) -> Group:
    """Parameter group of the router."""
    fixed = None if model.router.config.learn_temperature else model.router.log_temperature
    parameters = [p for p in model.router.parameters() if p is not fixed]
    return {"params": parameters, "lr": learning_rate, "weight_decay": config.weight_decay, "task": None}


def make_optimizer(groups: list[Group], device: torch.device) -> torch.optim.AdamW:
    """AdamW over exactly the parameters of ``groups``, with the fused kernel."""
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=device.type in ("cpu", "cuda"))


def warmup_and_decay(steps: int, warmup_ratio: float, schedule: str = "cosine") -> Callable[[int], float]:
    """Factor on the learning rate: a linear rise over the warm-up, then a cosine or linear fall to 0, or constant."""
    warmup = max(1, round(steps * warmup_ratio))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        share = (step - warmup) / max(1, steps - warmup)
        return {"cosine": 0.5 * (1 + math.cos(math.pi * share)), "linear": 1 - share, "constant": 1.0}[schedule]

    return factor


def freeze_all_but(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Let only ``parameters`` be trained."""
    chosen = {id(p) for p in parameters}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


def drop_idle_gradients(groups: Iterable[Group], tasks: set[str]) -> None:
    """Remove the gradients of tasks without a row in the batch, which skips their weight decay and moment updates."""
    for group in groups:
        if group["task"] is not None and group["task"] not in tasks:
            for parameter in group["params"]:
                parameter.grad = None
