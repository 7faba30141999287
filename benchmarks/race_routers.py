"""Other ways to mix adapters by input: X-LoRA's two passes and loop, and Arrow's scores at every layer.

Every system mixes with the same weights, so that the states can be compared; each also computes what its own router
would.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import Race, peak_extra_mib, race
from peft import ArrowConfig, create_arrow_model
from rivals import SITES, Inputs, mixed_lengths, peft_model, plain_model, routed_forward, routed_model, spread
from torch import Tensor, nn
from transformers import AutoModel

from dynamo_mtl.model.dynamo import DynamoModel


class TwoPasses:
    """X-LoRA's way over ``transformers``: a whole pass whose last states give the scalings, then one with all adapters.

    At every adapted layer it goes through the adapters one by one, on all tokens, scaled by the row's weight (PEFT
    0.21, tuners/xlora/layer.py).
    """

    def __init__(self, model: DynamoModel, plain: Any) -> None:
        self.plain, self.weights = plain, torch.zeros(0)
        hidden = model.encoder.config.hidden_size
        self.classifier = nn.Linear(hidden, len(model.task_names), dtype=model.dtype)
        modules = dict(plain.named_modules())
        for layer in range(model.tap_layer, model.encoder.config.num_layers):
            for site in model.bank[model.task_names[0]].config.sites:
                pairs = [model.bank[name].pair(layer, site) for name in model.task_names]
                scalings = [model.bank[name].config.scaling for name in model.task_names]
                own = [(pair[0].to(model.dtype), pair[1].to(model.dtype)) for pair in pairs if pair is not None]
                modules[f"encoder.layer.{layer}.{SITES[site]}"].register_forward_hook(self._hook(own, scalings))

    def _hook(self, pairs: list[tuple[Tensor, Tensor]], scalings: list[float]) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            if self.weights.numel():
                for index, ((down, up), scaling) in enumerate(zip(pairs, scalings, strict=True)):
                    scaled = inputs[0] * self.weights[:, index, None, None]
                    output = output + nn.functional.linear(nn.functional.linear(scaled, down), up) * scaling
            return output

        return add

    def __call__(self, inputs: Inputs, weights: Tensor) -> Tensor:
        """Padded states; ``weights`` stand for what its own classifier says."""
        self.weights = torch.zeros(0)
        first = self.plain(inputs.padded, attention_mask=inputs.mask, output_hidden_states=True).last_hidden_state
        torch.softmax(self.classifier(first), dim=-1)
        self.weights = weights.to(first.dtype)
        second = self.plain(inputs.padded, attention_mask=inputs.mask).last_hidden_state
        self.weights = torch.zeros(0)
        return second


def races(device: torch.device) -> dict[str, Race]:
    """Two passes with 5 and 16 adapters, and Arrow with 32."""
    found: dict[str, Race] = {}
    for adapters, name in ((5, "xlora_two_pass_k5"), (16, "xlora_two_pass")):
        model = routed_model("minilm", adapters, device, top_k=adapters)
        inputs = Inputs.make(mixed_lengths(), model.encoder.config.first_position, device)
        rival = TwoPasses(model, plain_model("minilm", model.dtype, device))
        rival.classifier.to(device)
        with torch.inference_mode():
            weights = spread(model, inputs, soft=True)
            _same(model, routed_forward(model, inputs, weights), inputs.real(rival(inputs, weights)))
            found[name] = race(
                partial(rival, inputs, weights), partial(routed_forward, model, inputs, weights), device,
                target=4.0, at_least=True, adapters=adapters,
                what="time of two passes and a loop over adapters, in transformers, over a routed soft mixture",
            )  # fmt: skip
    return found | {"peft_arrow_k32": _arrow(device)}


def _arrow(device: torch.device) -> Race:
    """PEFT's Arrow at a temperature that makes it mix all 32 alike, and our router with no preference.

    Arrow wants adapters in every layer, so that here ours are in every layer too.
    """
    model = routed_model("minilm", 32, device, top_k=32, tap_layer=0)
    with torch.no_grad():
        last = [module for module in model.router.modules() if isinstance(module, nn.Linear)][-1]
        last.weight.zero_()
        last.bias.zero_()
    inputs = Inputs.make(mixed_lengths(), model.encoder.config.first_position, device)
    rival = _arrow_model(model).to(device)
    with torch.inference_mode():

        def theirs() -> Tensor:
            return rival(input_ids=inputs.padded, attention_mask=inputs.mask).last_hidden_state

        def ours() -> Tensor:
            return model(inputs.batch).hidden[: len(inputs.batch.windows)]

        _same(model, ours(), inputs.real(theirs()))
        memory = [peak_extra_mib(run, device) for run in (ours, theirs)]
        return race(
            theirs, ours, device, target=4.0, at_least=True, pairs=7, adapters=32,
            extra_mib={"dynamo": memory[0], "arrow": memory[1]}, memory_ratio=memory[0] / memory[1],
            memory_target=0.1, memory_met=memory[0] / memory[1] <= 0.1,
            what="time of PEFT's Arrow over a routed forward that mixes the same adapters",
        )  # fmt: skip


def _arrow_model(model: DynamoModel) -> Any:
    plain_peft = peft_model(model, "minilm", model.dtype, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        plain_peft.save_pretrained(folder)
        paths = [str(Path(folder) / name) for name in model.task_names]
        base = AutoModel.from_pretrained(plain_peft.get_base_model().name_or_path, dtype=model.dtype)
        config = ArrowConfig(top_k=len(paths), router_temperature=1e6, rng_seed=0)
        return create_arrow_model(base, paths, config, autocast_adapter_dtype=False).eval()


def _same(model: DynamoModel, ours: Tensor, theirs: Tensor) -> None:
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.2
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
