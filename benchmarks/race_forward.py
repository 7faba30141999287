"""A routed forward of mixed tasks, and what it costs beside a forward that routes nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import rivals
import torch
from harness import Race, race
from rivals import Inputs, mixed_lengths, plain_model, routed_forward, routed_model, spread

from dynamo_mtl.model.encoder import PackedAttention


def races(device: torch.device) -> dict[str, Race]:
    """Against the backbone in ``transformers`` and our own without adapters, and over the number of adapters."""
    found: dict[str, Race] = {}
    for shape in rivals.SHAPES:
        suffix = "" if shape == "minilm" else f"_{shape}"
        found |= {f"{name}{suffix}": result for name, result in _races(shape, device).items()}
    return found


def _races(shape: str, device: torch.device) -> dict[str, Race]:
    model = routed_model(shape, 5, device)
    inputs = Inputs.make(mixed_lengths(), model.encoder.config.first_position, device)
    plain = plain_model(shape, model.dtype, device)
    _same(model, plain, inputs)

    def routed(adapters: int, soft: bool = False, sites: Any = ("query", "value")) -> Callable[[], torch.Tensor]:
        own = routed_model(shape, adapters, device, top_k=adapters if soft else 1, sites=sites)
        return partial(routed_forward, own, inputs, spread(own, inputs, soft))

    def padded() -> None:
        plain(inputs.padded, attention_mask=inputs.mask)

    by_length = _sorted_batches(inputs)

    def careful() -> None:
        for ids, mask in by_length:
            plain(ids, attention_mask=mask)

    bare = partial(_bare, model, inputs)
    # Made outside of inference mode, as models are: what is packed of tensors made inside it cannot be kept.
    few, many = routed(5), routed(64)
    few_soft, many_soft = routed(5, soft=True), routed(64, soft=True)
    everywhere = routed(5, sites="all-linear")
    with torch.inference_mode():
        return {
            "routed_vs_transformers": race(
                padded, few, device, target=3.0, at_least=True,
                what="time of transformers, padded, without adapters, over a routed forward",
            ),
            "routed_vs_transformers_sorted": race(
                careful, few, device, target=1.0, at_least=True,
                what="time of transformers in sub-batches of similar length over a routed forward",
            ),
            "routed_over_bare": race(
                few, bare, device, target=1.08, at_least=False, pairs=31,
                what="time of a routed forward over our backbone without adapters and router",
            ),
            "routed_over_bare_all_linear": race(
                everywhere, bare, device, target=1.25, at_least=False,
                what="the same with adapters at all linear layers",
            ),
            "adapters_64_over_5_top1": race(
                many, few, device, target=1.10, at_least=False, pairs=31,
                what="time of a routed forward with 64 adapters over one with 5, top-1",
            ),
            "adapters_64_over_5_soft": race(
                many_soft, few_soft, device, target=1.7 if shape == "minilm" else 1.4, at_least=False,
                what="time of a routed forward with 64 adapters over one with 5, all mixed",
            ),
        }  # fmt: skip


def _bare(model: Any, inputs: Inputs) -> torch.Tensor:
    """The packed backbone, nothing else."""
    encoder, batch = model.encoder, inputs.batch
    attention = PackedAttention(batch.trunk_plan, encoder.config.num_heads)
    hidden = encoder.embed(encoder.word_embeddings(batch.ids), batch.positions)
    return encoder.run(hidden, attention, 0, encoder.config.num_layers)[: len(batch.windows)]


def _same(model: Any, plain: Any, inputs: Inputs) -> None:
    """Without adapters our states are those of ``transformers``."""
    with torch.inference_mode():
        theirs = inputs.real(plain(inputs.padded, attention_mask=inputs.mask).last_hidden_state)
        ours = _bare(model, inputs)
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.15
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def _sorted_batches(inputs: Inputs, parts: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows sorted by length, in sub-batches that are padded by themselves."""
    lengths = inputs.mask.sum(dim=1)
    order = lengths.argsort()
    batches = []
    for rows in order.chunk(parts):
        longest = int(lengths[rows].max())
        batches.append((inputs.padded[rows, :longest], inputs.mask[rows, :longest]))
    return batches
