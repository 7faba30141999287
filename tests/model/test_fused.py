"""Linear layers with what follows them are what the separate operations are."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dynamo_mtl.model import hardware
from dynamo_mtl.model.fused import linear


class _Fused:
    """Stands in for oneDNN's product where this CPU has none: computes in fp32 and rounds once."""

    def __call__(self, inputs, weight, bias, activation, scalars, algorithm):
        assert (scalars, algorithm) == ([], "none")
        product = F.linear(inputs.float(), weight.float(), bias.float())
        return {"gelu": F.gelu, "none": lambda x: x}[activation](product).to(inputs.dtype)

    def binary(self, inputs, plus, weight, bias, operation):
        assert operation == "add"
        return (F.linear(inputs.float(), weight.float(), bias.float()) + plus.float()).to(inputs.dtype)


@pytest.fixture(params=[True, False], ids=["fused", "one after the other"])
def fuses(request, monkeypatch):
    """Both answers of the hardware, whatever this CPU is."""
    if request.param and not hardware.fuses_bf16():
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", _Fused(), raising=False)
    monkeypatch.setattr(hardware, "fuses_bf16", lambda: request.param)
    return request.param


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_linear_layer_with_what_follows_is_exact_but_for_rounding(fuses, dtype):
    """Against fp32. Fails if the bias, the activation or the sum is left out, or the sum is written into its input."""
    torch.manual_seed(0)
    layer = nn.Linear(24, 40).to(dtype)
    inputs, plus = torch.randn(7, 24).to(dtype), torch.randn(7, 40).to(dtype)
    before = plus.clone()
    product = F.linear(inputs.float(), layer.weight.float(), layer.bias.float())
    tolerance = {"atol": 3e-2, "rtol": 1e-2} if dtype == torch.bfloat16 else {}
    for with_gradient in (False, True):
        with torch.set_grad_enabled(with_gradient):
            torch.testing.assert_close(linear(layer, inputs).float(), product, **tolerance)
            torch.testing.assert_close(linear(layer, inputs, gelu=True).float(), F.gelu(product), **tolerance)
            torch.testing.assert_close(linear(layer, inputs, plus=plus).float(), product + plus.float(), **tolerance)
    assert torch.equal(plus, before)


def test_in_bf16_without_gradient_products_are_fused_where_the_hardware_can(fuses):
    """Fails if nothing is fused any more: rounding after every operation gives other values than once at the end."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 512).to(torch.bfloat16)
    inputs = torch.randn(64, 64).to(torch.bfloat16)
    exact = F.gelu(F.linear(inputs.double(), layer.weight.double(), layer.bias.double()))
    with torch.no_grad():
        once, twice = linear(layer, inputs, gelu=True), F.gelu(layer(inputs))
    errors = [(own.double() - exact).abs().mean() for own in (once, twice)]
    assert errors[0] < 0.9 * errors[1] if fuses else torch.equal(once, twice)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_layers_do_not_ask_for_fused_products(monkeypatch):
    """Fails if they do: the compiler refuses them, and has its own."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 16).to(torch.bfloat16)
    inputs = torch.randn(4, 16).to(torch.bfloat16)
    with torch.no_grad():
        expected = linear(layer, inputs, gelu=True)
        monkeypatch.setattr(hardware, "fuses_bf16", lambda: pytest.fail("asked while compiling"))
        compiled = torch.compile(linear, backend="eager")(layer, inputs, gelu=True)  # traced as always
    torch.testing.assert_close(compiled, expected, atol=2e-2, rtol=2e-2)
