"""Mixed tasks in one batch against PEFT: each row with its adapter, as ``adapter_names``."""

from __future__ import annotations

from typing import Any

import torch
from harness import Race, race
from rivals import Inputs, mixed_lengths, peft_model, routed_forward, routed_model, spread

EQUAL = [64] * 30


def races(device: torch.device) -> dict[str, Race]:
    """5, 16 and 64 adapters on mixed lengths; 5 on equal lengths, where padding costs PEFT nothing."""
    found: dict[str, Race] = {}
    for name, adapters, lengths, precision, target in (
        ("peft_mixed_k5", 5, mixed_lengths(), "auto", 3.0),
        ("peft_mixed_k16", 16, mixed_lengths(), "auto", 3.0),
        ("peft_mixed_k64", 64, mixed_lengths(), "auto", 3.0),
        ("peft_equal_fp32", 5, EQUAL, "fp32", 1.0),
        ("peft_equal_bf16", 5, EQUAL, "bf16", 1.1),
    ):
        model = routed_model("minilm", adapters, device, precision)
        inputs = Inputs.make(lengths, model.encoder.config.first_position, device)
        rival = peft_model(model, "minilm", model.dtype, device)
        with torch.inference_mode():
            weights = spread(model, inputs)
            names = [model.task_names[n] for n in weights.argmax(dim=1).tolist()]

            def theirs(rival: Any = rival, inputs: Inputs = inputs, names: list[str] = names) -> Any:
                return rival(input_ids=inputs.padded, attention_mask=inputs.mask, adapter_names=names)

            def ours(model: Any = model, inputs: Inputs = inputs, weights: torch.Tensor = weights) -> Any:
                return routed_forward(model, inputs, weights)

            tolerance = 1e-3 if model.dtype == torch.float32 else 0.2
            torch.testing.assert_close(ours(), inputs.real(theirs().last_hidden_state), atol=tolerance, rtol=tolerance)
            found[name] = race(
                theirs, ours, device, target=target, at_least=True,
                what="time of PEFT, given the adapter of each row, over a forward that routes too",
                adapters=adapters, adapters_used=len(set(names)), dtype=str(model.dtype),
            )  # fmt: skip
    return found
