"""A backbone in 8 bits: within half a step of the full one, never changed, and only as large as it says."""

import sys

import pytest
import torch
from tiny import small_system

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.model.model_config import ModelConfig
from dynamo_mtl.model.quantization import quantize_layers, stored_bytes
from dynamo_mtl.tasks.encoding import collate
from dynamo_mtl.tasks.tables import example_at


@pytest.fixture
def make(session_config, tables):
    """The small system under changed settings of its model, always with the same adapters."""

    def build(**changes):
        config = session_config.model_copy(update={"model": session_config.model.model_copy(update=changes)})
        return small_system(config, tables)

    return build


def _linears(system):
    return [m for m in system.model.encoder.layers.modules() if isinstance(m, torch.nn.Linear)]


def _mixed(system, tables):
    names = list(system.tasks)
    together = collate([system.encode(example_at(tables[n].train, 0), n) for n in names], system.first_position)
    return together, system.model.oracle_weights(together.routes)


def test_each_value_is_within_half_a_step_of_its_row(make):
    plain, small = make(), make(quantization="int8")
    for full, quantized in zip(_linears(plain), _linears(small), strict=True):
        step = full.weight.abs().amax(dim=1, keepdim=True) / 127
        error = (quantized.weight.dequantize() - full.weight).abs()
        assert float(error.max()) > 0
        assert bool((error <= 0.51 * step).all())
        assert torch.equal(quantized.bias, full.bias)
    assert torch.equal(plain.model.encoder.word_embeddings.weight, small.model.encoder.word_embeddings.weight)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.05), ("bf16", 0.1)])
def test_answers_are_close_to_those_of_the_full_backbone(make, tables, precision, tolerance):
    """Without gradient, bf16 products are fused on a CPU, which a quantized matrix must not be taken for."""
    hidden = []
    for system in (make(precision=precision), make(precision=precision, quantization="int8")):
        system.model.eval()
        together, weights = _mixed(system, tables)
        with torch.no_grad():
            hidden.append(system.model(together.batch, weights).hidden.float())
    distance = (hidden[0] - hidden[1]).norm() / hidden[0].norm()
    assert 0.0 < float(distance) < tolerance


def test_gradient_reaches_adapters_and_no_integer_changes(make, tables):
    system = make(quantization="int8")
    before = [linear.weight.dequantize().clone() for linear in _linears(system)]
    together, weights = _mixed(system, tables)
    system.model.train()
    system.model(together.batch, weights).hidden.float().square().mean().backward()
    gradients = [p.grad for p in system.model.bank.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients)
    torch.optim.SGD(system.model.parameters(), 0.1).step()
    assert all(
        torch.equal(linear.weight.dequantize(), old) for linear, old in zip(_linears(system), before, strict=True)
    )


def test_a_backbone_is_quantized_once(make):
    """A task that is added later builds the model anew over the same backbone."""
    system = make(quantization="int8")
    before = [linear.weight for linear in _linears(system)]
    quantize_layers(system.model.encoder)
    assert all(linear.weight is old for linear, old in zip(_linears(system), before, strict=True))


def test_a_byte_for_a_value_and_a_scale_for_a_row(make):
    """Some versions of torchao keep a zero point beside the scale, in a byte."""
    plain, small = make(), make(quantization="int8")
    values = sum(3 * linear.weight.numel() for linear in _linears(plain))
    rows = sum(linear.out_features for linear in _linears(plain))
    assert stored_bytes(plain.model.encoder) == 4 * plain.model.parameter_counts()["backbone"]
    saved = stored_bytes(plain.model.encoder) - stored_bytes(small.model.encoder)
    assert values - 5 * rows <= saved <= values - 4 * rows
    assert small.model.parameter_counts() == plain.model.parameter_counts()


def test_without_torchao_the_extra_is_named(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ConfigError, match=r"needs torchao.*-e '\.\[quantize\]"):
        make(quantization="int8")


def test_a_trained_backbone_is_not_quantized():
    with pytest.raises(ConfigError, match="for a frozen backbone"):
        ModelConfig(freeze_backbone=False, adapters="none", quantization="int8")
