"""Linear layers with what follows them are what the separate operations are."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dynamo_mtl.model import fused
from dynamo_mtl.model.fused import linear


@pytest.mark.parametrize("available", [True, False], ids=["fused", "one after the other"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_linear_layer_with_what_follows_is_exact_but_for_rounding(available, dtype, monkeypatch):
    """Against fp32. Fails if the bias, the activation or the sum is left out, or the sum is written into its input."""
    if available and not fused.AVAILABLE:
        pytest.skip("this PyTorch has no fused products")
    monkeypatch.setattr(fused, "AVAILABLE", available)
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


def test_in_bf16_without_gradient_products_are_fused():
    """Fails if nothing is fused any more: rounding after every operation gives other values than once at the end."""
    if not fused.AVAILABLE:
        pytest.skip("this PyTorch has no fused products")
    torch.manual_seed(0)
    layer = nn.Linear(64, 512).to(torch.bfloat16)
    inputs = torch.randn(64, 64).to(torch.bfloat16)
    exact = F.gelu(F.linear(inputs.double(), layer.weight.double(), layer.bias.double()))
    with torch.no_grad():
        once, twice = linear(layer, inputs, gelu=True), F.gelu(layer(inputs))
    errors = [(own.double() - exact).abs().mean() for own in (once, twice)]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_layers_do_not_ask_for_fused_products():
    """Fails if they do: the compiler refuses them, and has its own."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 16).to(torch.bfloat16)
    inputs = torch.randn(4, 16).to(torch.bfloat16)
    with torch.no_grad():
        compiled = torch.compile(linear, backend="inductor")(layer, inputs, gelu=True)
        torch.testing.assert_close(compiled, linear(layer, inputs, gelu=True), atol=2e-2, rtol=2e-2)
