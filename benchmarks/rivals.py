"""The same weights in DYNAMO, in ``transformers`` and in PEFT, and the same inputs packed and padded."""

from __future__ import annotations

import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModel, RobertaConfig, RobertaModel

from dynamo_mtl.model.adapter import LoraConfig
from dynamo_mtl.model.backbone import find_backbone, load_backbone
from dynamo_mtl.model.batch import Batch, Window, build_batch, to_device
from dynamo_mtl.model.dynamo import DynamoModel
from dynamo_mtl.model.hardware import compute_dtype
from dynamo_mtl.model.heads import HeadConfig
from dynamo_mtl.model.model_config import ModelConfig
from dynamo_mtl.model.router import RouterConfig, top_k_weights

LENGTHS: dict[str, list[int]] = json.loads(Path(__file__).with_name("lengths.json").read_text(encoding="utf-8"))
"""Task → tokens of six real inputs, first windows, drawn at random from validation data."""
SHAPES = ("minilm", "roberta-base")
RANK = 16
SITES = {"query": "attention.self.query", "value": "attention.self.value", "key": "attention.self.key",
         "attention.output": "attention.output.dense", "intermediate": "intermediate.dense",
         "output": "output.dense"}  # fmt: skip


def backbone_folder(shape: str) -> Path:
    """MiniLM as it is published, or random weights in the shape of roberta-base."""
    if shape == "minilm":
        return find_backbone("minilm")
    folder = Path(tempfile.gettempdir()) / "dynamo-bench-roberta-base"
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
        RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Inputs:
    """The same token ids, packed and padded."""

    ids: list[list[int]]
    batch: Batch
    padded: Tensor
    mask: Tensor

    @staticmethod
    def make(lengths: list[int], first_position: int, device: torch.device, seed: int = 0) -> Inputs:
        """Random words of the lengths, framed as a text is."""
        rng = random.Random(seed)
        ids = [[101, *(rng.randrange(1000, 30000) for _ in range(n - 2)), 102] for n in lengths]
        batch = to_device(build_batch([Window(s, row) for row, s in enumerate(ids)], [], first_position), device)
        longest = max(lengths)
        padded = torch.tensor([[*s, *[first_position - 1 if first_position else 0] * (longest - len(s))] for s in ids])
        mask = torch.tensor([[1] * n + [0] * (longest - n) for n in lengths])
        return Inputs(ids, batch, padded.to(device), mask.to(device))

    def real(self, states: Tensor) -> Tensor:
        """Padded states ``(rows, length, width)`` → those of real tokens, packed."""
        return states[self.mask.bool()]


def mixed_lengths() -> list[int]:
    """30 inputs, six a task, in a random order."""
    lengths = [n for own in LENGTHS.values() for n in own]
    random.Random(0).shuffle(lengths)
    return lengths


def routed_model(
    shape: str,
    adapters: int,
    device: torch.device,
    precision: str = "auto",
    sites: Any = ("query", "value"),
    tap_layer: int | None = None,
    top_k: int = 1,
    heads: Literal["span", "language_model"] = "span",
) -> DynamoModel:
    """Adapters of rank 16 that all change the output, and a router of random weights."""
    torch.manual_seed(1)
    backbone = load_backbone(str(backbone_folder(shape)), tokenizer_folder=find_backbone("minilm"))
    names = [f"task_{n}" for n in range(adapters)]
    lora = LoraConfig(rank=RANK, alpha=32, dropout=0.0, target_modules=sites if isinstance(sites, str) else list(sites))
    model = DynamoModel(
        backbone,
        ModelConfig(base_model_name=shape, tap_layer=tap_layer),
        dict.fromkeys(names, lora),
        dict.fromkeys(names, HeadConfig(kind=heads)),
        RouterConfig(hidden_sizes=[512, 256], top_k=top_k),
        compute_dtype(precision, device),
    )
    with torch.no_grad():
        for name, parameter in model.bank.named_parameters():
            if ".up." in name:
                parameter.normal_(std=0.02)
    return model.to(device).eval().requires_grad_(False)


def spread(model: DynamoModel, inputs: Inputs, soft: bool = False) -> Tensor:
    """Mixing weights that use all adapters: one for each input in turn, or a different mixture for each.

    A router without training sends nearly all to one adapter, which would flatter those whose cost grows with the
    number of adapters in use.
    """
    rows, adapters = inputs.batch.example_count, len(model.task_names)
    if not soft:
        return model.oracle_weights(torch.arange(rows, device=inputs.batch.ids.device) % adapters)
    generator = torch.Generator().manual_seed(3)
    return torch.softmax(torch.randn(rows, adapters, generator=generator), dim=-1).to(inputs.batch.ids.device)


def routed_forward(model: DynamoModel, inputs: Inputs, weights: Tensor) -> Tensor:
    """A routed pass whose router is run, and whose choice is then replaced by ``weights``."""
    trunk = model.trunk(inputs.batch)
    top_k_weights(model.router(trunk.features).weights, model.router.config.top_k)
    top_k = model.router.config.top_k
    return model(inputs.batch, weights, top_k=top_k, trunk=trunk).hidden[: len(inputs.batch.windows)]


def plain_model(shape: str, dtype: torch.dtype, device: torch.device) -> Any:
    """The backbone as ``transformers`` runs it."""
    model = AutoModel.from_pretrained(backbone_folder(shape), dtype=dtype, add_pooling_layer=False)
    return model.to(device).eval().requires_grad_(False)


def peft_model(model: DynamoModel, shape: str, dtype: torch.dtype, device: torch.device) -> PeftModel:
    """The same adapters over the same backbone in PEFT."""
    encoder = model.encoder.config
    first = model.bank[model.task_names[0]].config
    config = PeftConfig(
        r=first.rank,
        lora_alpha=first.alpha,  # pyright: ignore[reportArgumentType] - a float is taken
        lora_dropout=0.0,
        target_modules=[SITES[site] for site in first.sites],
        layers_to_transform=list(range(model.tap_layer, encoder.num_layers)),
        layers_pattern="layer",
    )
    plain = AutoModel.from_pretrained(backbone_folder(shape), dtype=dtype, add_pooling_layer=False)
    rival = get_peft_model(plain, config, adapter_name=model.task_names[0], autocast_adapter_dtype=False)
    for name in model.task_names[1:]:
        rival.add_adapter(name, config, autocast_adapter_dtype=False)
    modules = dict(rival.named_modules())
    with torch.no_grad():
        for name in model.task_names:
            for layer in range(model.tap_layer, encoder.num_layers):
                for site in first.sites:
                    module = modules[f"base_model.model.encoder.layer.{layer}.{SITES[site]}"]
                    pair = model.bank[name].pair(layer, site)
                    assert pair is not None
                    module.lora_A[name].weight.copy_(pair[0])  # pyright: ignore
                    module.lora_B[name].weight.copy_(pair[1])  # pyright: ignore
    return rival.to(device).eval()
