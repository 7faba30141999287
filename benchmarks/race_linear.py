"""Linear layers fused with what follows them (``model/fused.py``) against the same operations one after the other."""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

import rivals
import torch
from harness import Race, race
from rivals import Inputs, mixed_lengths, routed_forward, routed_model, spread
from torch import Tensor

from dynamo_mtl.model import hardware


def races(device: torch.device) -> dict[str, Race]:
    """A routed forward in bf16 on a CPU; elsewhere nothing is fused, so that there is nothing to race."""
    if device.type != "cpu" or not hardware.fuses_bf16():
        return {}
    found: dict[str, Race] = {}
    for shape in rivals.SHAPES:
        model = routed_model(shape, 5, device)
        inputs = Inputs.make(mixed_lengths(), model.encoder.config.first_position, device)
        with torch.inference_mode():
            forward = partial(routed_forward, model, inputs, spread(model, inputs))
            separate = partial(_separate, forward)
            torch.testing.assert_close(forward(), separate(), atol=0.2, rtol=0.2)
            suffix = "" if shape == "minilm" else f"_{shape}"
            found[f"linear_fused{suffix}"] = race(
                forward, separate, device, target=1.0, at_least=False,
                what="time of a routed forward with fused linear layers over one without",
            )  # fmt: skip
    return found


def _separate(forward: partial[Tensor]) -> Tensor:
    with patch.object(hardware, "fuses_bf16", return_value=False):
        return forward()
