"""Export a trained model as one ONNX graph: router, all adapters, and the heads that predict labels or spans.

The graph takes padded rows of one window each, while the model takes packed tokens. Attention, pooling and the mixing
of adapters are therefore implemented here for padded rows. Layers and heads are those of the model. Tasks that write
text are not exported, because they decode in a loop around a cache; use ``dynamo serve`` for them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamo_mtl.checkpoint.folder import CONFIG, copy_tokenizer
from dynamo_mtl.checkpoint.stored_config import read_system_config
from dynamo_mtl.errors import CheckpointError, ConfigError
from dynamo_mtl.model.calibration import Calibration
from dynamo_mtl.model.encoder import SITES
from dynamo_mtl.model.heads import ClassificationHead, RegressionHead, TokenHead
from dynamo_mtl.model.router import PREFIXES
from dynamo_mtl.storage import new_folder, write_folder
from dynamo_mtl.system import System, load_system
from dynamo_mtl.tasks.generation_task import GenerationTask
from dynamo_mtl.tasks.task import Task

logger = logging.getLogger(__name__)

GRAPH, QUANTIZED, DESCRIPTION = "model.onnx", "model.int8.onnx", "onnx.json"
INPUTS = ("ids", "mask", "task")
PROBABILITIES = "probabilities"
OPSET = 20
CPU = torch.device("cpu")


class _PaddedAttention:
    """Attention over padded rows; see ``encoder.Attention``."""

    def __init__(self, mask: Tensor, heads: int) -> None:
        self.mask, self.heads = mask.bool()[:, None, None, :], heads

    def __call__(self, layer: int, joint: Tensor) -> Tensor:
        """``(rows, length, 3 · hidden)`` → ``(rows, length, hidden)``."""
        parts = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in joint.chunk(3, dim=2))
        query, key, value = parts
        return F.scaled_dot_product_attention(query, key, value, self.mask).transpose(1, 2).flatten(2)


class _PaddedAdapters:
    """All adapters by concatenated ranks, each row with its own weights; see ``encoder.Adapters``."""

    def __init__(self, graph: RoutedGraph, weights: Tensor) -> None:
        self.graph, self.weights = graph, weights

    def __call__(self, layer: int, sites: Sequence[str], inputs: Tensor, output: Tensor) -> Tensor:
        """See ``encoder.Adapters``."""
        added: list[Tensor] = []
        for site in sites:
            if self.act_at(layer, site):
                down, up, owners = self.graph.packed(layer, site)
                added.append((inputs @ down.T * self.weights[:, None].index_select(2, owners)) @ up.T)
            else:
                added.append(inputs.new_zeros(1).expand_as(output.chunk(len(sites), dim=2)[0]))
        return output + torch.cat(added, dim=2)

    def act_at(self, layer: int, site: str) -> bool:
        """See ``encoder.Adapters``."""
        return self.graph.model.bank.act_at(layer, site)


def _buffer(part: str, layer: int, site: str) -> str:
    return f"{part}_{layer}_{site.replace('.', '_')}"


def _is_exported(task: Task) -> bool:
    return not isinstance(task, GenerationTask) and not task.takes_choices


class RoutedGraph(nn.Module):
    """The module that is exported."""

    def __init__(self, system: System, calibration: Calibration) -> None:
        super().__init__()
        self.model, self.calibration = system.model, calibration
        self.exported = [name for name, task in system.tasks.items() if _is_exported(task)]
        takes_choices = [task.takes_choices for task in system.tasks.values()]
        self.register_buffer("takes_choices", torch.tensor(takes_choices), persistent=False)
        self.tasks = {name: system.tasks[name] for name in self.exported}
        self.first_position = system.first_position
        bank = self.model.bank
        for layer in range(self.model.tap_layer, self.model.encoder.config.num_layers):
            for site in SITES:
                adapters = [(number, bank[name]) for number, name in enumerate(bank.names)]
                own = [(n, one.config, pair) for n, one in adapters if (pair := one.pair(layer, site)) is not None]
                if not own:
                    continue
                owners = torch.tensor([number for number, config, _ in own for _ in range(config.rank)])
                packed = {
                    "down": torch.cat([down for _, _, (down, _) in own]),
                    "up": torch.cat([config.scaling * up for _, config, (_, up) in own], dim=1),
                    "owners": owners,
                }
                for part, tensor in packed.items():
                    self.register_buffer(_buffer(part, layer, site), tensor.detach())

    def packed(self, layer: int, site: str) -> tuple[Tensor, Tensor, Tensor]:
        """All adapters of a site: A ``(ranks, in)``, scaled B ``(out, ranks)``, and the adapter of each rank."""
        down, up, owners = (self.get_buffer(_buffer(part, layer, site)) for part in ("down", "up", "owners"))
        return down, up, owners

    def forward(self, ids: Tensor, mask: Tensor, task: Tensor) -> tuple[Tensor, ...]:
        """Route and answer.

        Args:
            ids: ``(rows, length)`` source tokens with their special tokens; any token can be padding.
            mask: ``(rows, length)`` 1 for real tokens, which come first, 0 for padding.
            task: ``(rows,)`` number of the task that must answer, or -1 to let the router choose.

        Returns:
            Calibrated ``probabilities`` ``(rows, tasks)``, then for each exported task ``(rows, labels)``, or
            ``(rows, length, labels)`` where it labels tokens.
        """
        encoder, model = self.model.encoder, self.model
        attend = _PaddedAttention(mask, encoder.config.num_heads)
        positions = self.first_position + torch.arange(ids.shape[1], device=ids.device)[None, :].expand_as(ids) * mask
        hidden = encoder.embed(encoder.word_embeddings(ids), positions)
        features = [self._pool(hidden, ids, mask)]
        for layer in range(model.tap_layer):
            hidden = encoder.run(hidden, attend, layer, layer + 1)
            features.append(self._pool(hidden, ids, mask))
        logits = model.router(torch.cat(features, dim=1)).logits / model.router.temperature
        logits = logits.masked_fill(self.get_buffer("takes_choices"), float("-inf"))  # no row has options
        count = logits.shape[1]
        chosen = torch.where(task < 0, logits.argmax(dim=1), task)
        adapters = _PaddedAdapters(self, F.one_hot(chosen, count).to(hidden.dtype))
        hidden = encoder.run(hidden, attend, model.tap_layer, encoder.config.num_layers, adapters)
        return (self.calibration.probabilities(logits), *(self._head(name, hidden, mask) for name in self.exported))

    def _head(self, name: str, hidden: Tensor, mask: Tensor) -> Tensor:
        """Calibrated logits, or scores as they are in the data."""
        head, task = self.model.head(name), self.tasks[name]
        if isinstance(head, ClassificationHead):
            real = mask[:, :, None].to(hidden.dtype)
            outputs = head(hidden[:, 0], (hidden * real).sum(dim=1) / real.sum(dim=1))
            return task.exported(head.values(outputs) if isinstance(head, RegressionHead) else outputs)
        assert isinstance(head, TokenHead)
        return task.exported(head(hidden))

    def _pool(self, hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """``router.pool`` of rows of one window each."""
        real = mask.to(hidden.dtype)
        separators = (ids == self.model.separator).long() * mask
        question = (separators.cumsum(1) - separators == 0).to(hidden.dtype) * real
        place = torch.arange(ids.shape[1], device=ids.device)
        parts = [real, question, *(real * (place < length).to(hidden.dtype) for length in PREFIXES)]
        means = [(hidden * own[:, :, None]).sum(dim=1) / own.sum(dim=1, keepdim=True) for own in parts]
        return torch.cat([hidden[:, 0], *means], dim=1)


def export_onnx(checkpoint: Path, output: Path, quantize: bool = False) -> Path:
    """Write the graph, its description and the tokenizer into a folder.

    Args:
        checkpoint: a routed model.
        output: the folder.
        quantize: also write a graph with 8-bit matrices. This is ONNX Runtime's dynamic quantization, which rounds
            the inputs of a product to 8 bits as well.

    Returns:
        ``output``.

    Raises:
        ConfigError: the model has no router, another kind of routing, or nothing to export.
        CheckpointError: unusable checkpoint.
    """
    output = new_folder(output)
    config = read_system_config(checkpoint / CONFIG)
    # Load full-precision weights, not those rounded for this machine, since the graph may run on others.
    full = config.model.model_copy(update={"precision": "fp32", "quantization": None})
    whole = config.model_copy(update={"model": full})
    system, metadata = load_system(checkpoint, CPU, whole)
    graph = make_graph(system, metadata.calibration)
    length = min(16, system.config.data.max_source_length)
    example = (torch.ones(2, length, dtype=torch.long), torch.ones(2, length, dtype=torch.long), torch.tensor([-1, 0]))
    rows, columns = torch.export.Dim("rows", min=1), torch.export.Dim("length", min=2)
    names = [PROBABILITIES, *graph.exported]

    def fill(staging: Path) -> None:
        torch.onnx.export(
            graph,
            example,
            str(staging / GRAPH),
            input_names=list(INPUTS),
            output_names=names,
            dynamic_shapes=({0: rows, 1: columns}, {0: rows, 1: columns}, {0: rows}),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            verbose=False,
        )
        if quantize:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(staging / GRAPH, staging / QUANTIZED, weight_type=QuantType.QInt8, per_channel=True)
        description = _description(system, metadata.calibration, graph.exported)
        (staging / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        copy_tokenizer(checkpoint, staging)

    try:
        write_folder(output, fill)
    except OSError as error:
        raise CheckpointError(f"{output}: cannot be written ({error.strerror})") from error
    left_out = [name for name in system.tasks if name not in graph.exported]
    if left_out:
        names = ", ".join(left_out)
        logger.info("not exported, since they write text or choose among options: %s; dynamo serve answers them", names)
    return output


def make_graph(system: System, calibration: Calibration) -> RoutedGraph:
    """Build the graph of a system in fp32. Raises ``ConfigError`` if the system cannot be exported."""
    config = system.config.model
    if config.adapters != "routed" or config.router_input != "trunk" or system.config.router.top_k != 1:
        raise ConfigError("export: only a model whose router reads the trunk and chooses one adapter can be exported")
    graph = RoutedGraph(system, calibration)
    if not graph.exported:
        raise ConfigError(
            "export: every task of this model writes text or chooses among options; onnx holds tasks with labels or "
            "spans only"
        )
    system.model.dtype = torch.float32
    system.model.float()
    return graph.eval()


def _description(system: System, calibration: Calibration, exported: Sequence[str]) -> dict[str, Any]:
    """What a program needs to know to use the graph."""
    tasks: dict[str, Any] = {}
    for name in exported:
        task = system.tasks[name]
        found = task.calibration
        tasks[name] = {"type": task.type, "labels": task.output_names(), "thresholds": found.thresholds,
                       "abstain_below": found.abstain_below}  # fmt: skip
    tokenizer = system.source.tokenizer
    return {
        "inputs": list(INPUTS),
        "outputs": [PROBABILITIES, *exported],
        "tasks": list(system.tasks),
        "exported": tasks,
        "max_length": system.config.data.max_source_length,
        "first": tokenizer.first,
        "separator": tokenizer.separator,
        "separators_between": tokenizer.separators_between,
        "confidence_threshold": calibration.threshold,
    }
