"""Export one task as a plain ``transformers`` checkpoint, with its adapter merged into the backbone's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel

from dynamo_mtl.checkpoint.folder import copy_tokenizer
from dynamo_mtl.checkpoint.peft_format import PATHS
from dynamo_mtl.errors import CheckpointError, ConfigError
from dynamo_mtl.messages import did_you_mean
from dynamo_mtl.model.heads import ClassificationHead, Head, RegressionHead, TokenHead
from dynamo_mtl.storage import new_folder, write_folder
from dynamo_mtl.system import System, load_system

HEAD = "head.safetensors"


def export_merged(checkpoint: Path, output: Path, task: str) -> Path:
    """Write a folder that ``from_pretrained`` can load.

    If the task's type has a ``published_head``, the result is that model of ``transformers``, such as one for question
    answering. Otherwise it is the encoder alone, with our head in a separate file: a head on two pooled vectors, or one
    that writes text. Padded rows need ``token_type_ids`` of zero, as the exported tokenizer returns none. The logits of
    such a model are calibrated: they are divided by the task's temperature.

    Raises:
        ConfigError: no such task.
        CheckpointError: unusable checkpoint.
    """
    output = new_folder(output)
    system, _ = load_system(checkpoint, torch.device("cpu"), for_training=True)
    if system.config.model.adapters != "routed":
        raise ConfigError(
            f"model.adapters: found {system.config.model.adapters}; only an adapter of one task is merged"
        )
    if task not in system.tasks:
        raise ConfigError(f"--task: no task '{task}'; {did_you_mean(task, system.tasks)}")
    model = _published_model(system, task)
    with torch.no_grad():
        for name, change in _changes(system, task).items():
            parameter = model.base_model.get_parameter(name)
            parameter += change.to(parameter)

    def fill(staging: Path) -> None:
        model.save_pretrained(staging)
        copy_tokenizer(checkpoint, staging)
        path = staging / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        settings["model_input_names"] = ["input_ids", "attention_mask"]
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if system.tasks[task].published_head is None:
            tensors = {n: t.detach().contiguous() for n, t in system.model.head(task).state_dict().items()}
            save_file(tensors, staging / HEAD)

    try:
        write_folder(output, fill)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{output}: cannot be written ({error})") from error
    return output


def _published_model(system: System, task: str) -> Any:
    """The published architecture with the backbone's weights and, where it has one, the task's head."""
    folder, head, of_type = system.backbone.folder, system.model.head(task), system.tasks[task]
    published = of_type.published_head
    if published is None:
        return AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)
    labels = dict(enumerate(of_type.output_names())) if published.names_labels else {}
    named = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}} if labels else {}
    model = getattr(transformers, published.architecture).from_pretrained(folder, dtype=torch.float32, **named)
    if published.problem_type is not None:
        model.config.problem_type = published.problem_type
    with torch.no_grad():
        for module, weight, bias in _head_weights(head, of_type.calibration.temperature):
            own = model.get_submodule(next(name for name in module if _has(model, name)))
            own.weight.copy_(weight)
            own.bias.copy_(bias)
    return model


def _has(model: torch.nn.Module, name: str) -> bool:
    return name in dict(model.named_modules())


def _head_weights(head: Head, temperature: float) -> list[tuple[tuple[str, ...], Tensor, Tensor]]:
    """For each linear layer of a published head: the names that it has in different models, its weight, its bias.

    The last layer is scaled so that its outputs are calibrated logits, or scores as they are in the data.
    """
    if isinstance(head, TokenHead):
        names = ("classifier", "qa_outputs")
        return [(names, head.out.weight / temperature, head.out.bias / temperature)]
    assert isinstance(head, ClassificationHead)
    dense = (("bert.pooler.dense", "classifier.dense"), head.dense.weight, head.dense.bias)
    weight, bias = head.out.weight / temperature, head.out.bias / temperature
    if isinstance(head, RegressionHead):
        weight, bias = weight * head.spread, head.values(bias)
    return [dense, (("classifier.out_proj", "classifier"), weight, bias)]


def _changes(system: System, task: str) -> dict[str, Tensor]:
    """Published parameter name → ``s · B A`` of the task's adapter."""
    adapter, model = system.model.bank[task], system.model
    changes: dict[str, Tensor] = {}
    for layer in range(model.tap_layer, model.encoder.config.num_layers):
        for site in adapter.config.sites:
            pair = adapter.pair(layer, site)
            assert pair is not None
            changes[f"encoder.layer.{layer}.{PATHS[site]}.weight"] = adapter.config.scaling * (pair[1] @ pair[0])
    return changes
