"""A routed forward of mixed tasks, and what it costs beside a forward that routes nothing."""

from __future__ import annotations

from typing import Any

import rivals
import torch
from harness import Race, race
from rivals import Inputs, mixed_lengths, plain_model, routed_model

from dynamo_mtl.model.encoder import PackedAttention


def races(device: torch.device) -> dict[str, Race]:
    """Against the backbone in ``transformers`` and our own without adapters, and over the number of adapters."""
    found: dict[str, Race] = {}
    for shape in rivals.SHAPES:
        suffix = "" if shape == "minilm" else f"_{shape}"
        model = routed_model(shape, 5, device)
        inputs = Inputs.make(mixed_lengths(), model.encoder.config.first_position, device)
        plain = plain_model(shape, model.dtype, device)
        _same(model, plain, inputs)
        by_length = _sorted_batches(inputs)

        def padded(plain: Any = plain, inputs: Inputs = inputs) -> None:
            plain(inputs.padded, attention_mask=inputs.mask)

        def careful(plain: Any = plain, batches: Any = by_length) -> None:
            for ids, mask in batches:
                plain(ids, attention_mask=mask)

        def routed(model: Any = model, inputs: Inputs = inputs) -> None:
            model(inputs.batch)

        def bare(model: Any = model, inputs: Inputs = inputs) -> None:
            _bare(model, inputs)

        with torch.inference_mode():
            found[f"routed_vs_transformers{suffix}"] = race(
                padded, routed, device, target=3.0, at_least=True,
                what="time of transformers, padded, without adapters, over a routed forward",
            )  # fmt: skip
            found[f"routed_vs_transformers_sorted{suffix}"] = race(
                careful, routed, device, target=1.0, at_least=True,
                what="time of transformers in sub-batches of similar length over a routed forward",
            )  # fmt: skip
            found[f"routed_over_bare{suffix}"] = race(
                routed, bare, device, target=1.08, at_least=False, pairs=21,
                what="time of a routed forward over our backbone without adapters and router",
            )  # fmt: skip
            everywhere = routed_model(shape, 5, device, sites="all-linear")
            found[f"routed_over_bare_all_linear{suffix}"] = race(
                lambda m=everywhere, i=inputs: m(i.batch), bare, device, target=1.25, at_least=False,
                what="the same with adapters at all linear layers",
            )  # fmt: skip
            many = routed_model(shape, 64, device)
            found[f"adapters_64_over_5_top1{suffix}"] = race(
                lambda m=many, i=inputs: m(i.batch), routed, device, target=1.10, at_least=False, pairs=21,
                what="time of a routed forward with 64 adapters over one with 5, top-1",
            )  # fmt: skip
            few_soft, many_soft = (routed_model(shape, k, device, top_k=k) for k in (5, 64))
            found[f"adapters_64_over_5_soft{suffix}"] = race(
                lambda m=many_soft, i=inputs: m(i.batch), lambda m=few_soft, i=inputs: m(i.batch), device,
                target=1.7 if shape == "minilm" else 1.4, at_least=False,
                what="time of a routed forward with 64 adapters over one with 5, all mixed",
            )  # fmt: skip
    return found


def _bare(model: Any, inputs: Inputs) -> torch.Tensor:
    """The packed backbone, nothing else."""
    encoder, batch = model.encoder, inputs.batch
    attention = PackedAttention(batch.trunk_plan, encoder.config.num_heads)
    hidden = encoder.embed(encoder.word_embeddings(batch.ids), batch.positions)
    return encoder.run(hidden, attention, 0, encoder.config.num_layers)


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
