"""Adapters: soft mixing, groups, merged weights and PEFT agree; mixed ranks, scalings and target modules are exact."""

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny import save_system

from dynamo_mtl.model.adapter import AdapterBank, LoraConfig
from dynamo_mtl.model.encoder import SITES, EncoderConfig
from dynamo_mtl.model.mixing import ConcatenatedMix, GroupedMix, mix_adapters
from dynamo_mtl.model.router import top_k_weights

SHAPE = EncoderConfig("roberta", 50, 16, 4, 4, 24, 60, 2, 1, 1e-5)
CONFIGS = {
    "a": LoraConfig(rank=2, alpha=8.0, target_modules=["query", "value"]),
    "b": LoraConfig(rank=5, alpha=3.0, use_rslora=True),
    "c": LoraConfig(rank=7, alpha=32.0, target_modules=["intermediate", "output", "query"]),
}


@pytest.fixture
def bank():
    torch.manual_seed(0)
    bank = AdapterBank(CONFIGS, SHAPE, tap_layer=1).eval()
    for parameter in bank.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return bank


TOGETHER = {"query": ("query", "key", "value"), "key": ("query", "key", "value"), "value": ("query", "key", "value")}


def _added(mix, layer, site, inputs, width=None):
    """What a mix adds to the output of one site, in the batch's order of tokens."""
    sites = TOGETHER.get(site, (site,))
    width = width or (24 if site == "intermediate" else 16)
    # Outputs of other sites must not get what belongs to this one.
    output = torch.arange(float(len(sites))).repeat_interleave(width).repeat(len(inputs), 1)
    given = inputs[mix.sorting[0]] if mix.sorting else inputs
    place = sites.index(site)
    mixed = mix(layer, sites, given, output)[:, place * width : (place + 1) * width] - place
    return mixed[mix.sorting[1]] if mix.sorting else mixed


def _merged(bank, weights, rows, layer, site, inputs):
    """Each token through the plain weighted sum of full matrices."""
    out = []
    for token, row in zip(inputs, rows, strict=True):
        total = 0
        for column, name in enumerate(bank.names):
            pair = bank[name].pair(layer, site)
            if pair is not None:
                total = total + weights[row, column] * bank[name].config.scaling * (pair[1] @ pair[0]) @ token
        out.append(total)
    return torch.stack(out)


@pytest.mark.parametrize("with_gradient", [True, False])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("site", SITES)
def test_concatenated_grouped_and_merged_weights_agree(bank, site, top_k, with_gradient):
    bank.requires_grad_(with_gradient)
    with torch.set_grad_enabled(with_gradient):
        _assert_mixes_agree(bank, site, top_k)


def _assert_mixes_agree(bank, site, top_k):
    rows = torch.randint(0, 6, (90,))
    soft = torch.softmax(torch.randn(6, 3) + 2 * torch.eye(3).repeat(2, 1), dim=-1)
    weights = top_k_weights(soft, top_k)
    inputs = torch.randn(90, 24 if site == "output" else 16)
    concatenated = _added(ConcatenatedMix(bank, weights, rows, torch.float32), 2, site, inputs)
    grouped = _added(GroupedMix(bank, weights, rows, torch.float32, top_k), 2, site, inputs)
    merged = _merged(bank, weights, rows, 2, site, inputs)
    assert merged.abs().max() > 0.1
    torch.testing.assert_close(concatenated, merged, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grouped, merged, atol=1e-5, rtol=1e-5)
    all_soft = _added(ConcatenatedMix(bank, soft, rows, torch.float32), 2, site, inputs)
    torch.testing.assert_close(all_soft, _merged(bank, soft, rows, 2, site, inputs), atol=1e-5, rtol=1e-5)


def test_the_cheaper_form_is_chosen_by_shape(bank):
    few, many = torch.zeros(8, dtype=torch.long), torch.zeros(4000, dtype=torch.long)
    weights = torch.eye(3)[:1]
    wide = AdapterBank({str(i): LoraConfig(rank=32) for i in range(16)}, SHAPE, tap_layer=1)
    one_hot = torch.eye(16)[:1]
    assert isinstance(mix_adapters(wide, one_hot, many, torch.float32, top_k=1), GroupedMix)
    assert isinstance(mix_adapters(wide, one_hot, few, torch.float32, top_k=1), ConcatenatedMix)
    assert isinstance(mix_adapters(bank, weights, many, torch.float32), ConcatenatedMix)


@pytest.mark.parametrize("top_k", [1, 2])
def test_gradients_of_both_forms_agree(bank, top_k):
    rows = torch.randint(0, 6, (70,))
    weights = top_k_weights(torch.softmax(torch.randn(6, 3) + 6 * torch.eye(3).repeat(2, 1), dim=-1), top_k)
    inputs, out = torch.randn(70, 16), torch.randn(70, 16)
    gradients = []
    for mix in (
        ConcatenatedMix(bank, weights, rows, torch.float32),
        GroupedMix(bank, weights, rows, torch.float32, top_k),
    ):
        bank.zero_grad()
        (_added(mix, 1, "query", inputs) * out).sum().backward()
        gradients.append([p.grad.clone() for p in bank.parameters() if p.grad is not None and p.grad.any()])
    assert len(gradients[0]) == len(gradients[1]) == 6
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_fresh_adapter_changes_nothing_and_the_trunk_has_none():
    bank = AdapterBank(CONFIGS, SHAPE, tap_layer=2).eval()
    mix = mix_adapters(bank, torch.eye(3), torch.tensor([0, 1, 2]), torch.float32)
    output = torch.randn(3, 48)
    assert torch.equal(mix(3, SITES[:3], torch.randn(3, 16), output), output)
    assert mix(1, SITES[:3], torch.randn(3, 16), output) is output


@pytest.mark.parametrize("top_k", [None, 1])
def test_what_is_packed_is_forgotten_when_an_adapter_changes(bank, top_k):
    """Fails if an answer after a training step comes from the weights before it."""
    rows, inputs = torch.tensor([0, 1, 2] * 2000), torch.randn(6000, 16)

    def added():
        with torch.no_grad():
            return _added(mix_adapters(bank, torch.eye(3), rows, torch.float32, top_k=top_k), 2, "query", inputs)

    before = added()
    assert torch.equal(added(), before)
    with torch.no_grad():
        bank["b"].up["2_query"].mul_(2)
    after = added()
    torch.testing.assert_close(after[1::3], 2 * before[1::3])
    assert torch.equal(after[::3], before[::3])


def test_what_is_packed_is_forgotten_after_a_fused_update(bank):
    """Fails without ``AdapterBank.train``: a fused optimizer does not count up the versions of what it changes."""
    rows, inputs = torch.tensor([0, 1, 2] * 20), torch.randn(60, 16)

    def added():
        bank.eval()
        with torch.no_grad():
            return _added(mix_adapters(bank, torch.eye(3), rows, torch.float32), 2, "query", inputs)

    before = added()
    bank.train()
    optimizer = torch.optim.AdamW(bank.parameters(), lr=0.1, fused=True)
    for parameter in bank.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert (added() - before).abs().max() > 0.1


def test_dropout_acts_on_each_adapter_at_its_own_rate():
    configs = {"none": LoraConfig(rank=3, alpha=3.0, dropout=0.0), "half": LoraConfig(rank=3, alpha=3.0, dropout=0.5)}
    bank = AdapterBank(configs, SHAPE, tap_layer=0).train()
    for parameter in bank.parameters():
        torch.nn.init.ones_(parameter)
    rows = torch.tensor([0] * 500 + [1] * 500)
    torch.manual_seed(0)
    added = _added(mix_adapters(bank, torch.eye(2), rows, torch.float32), 0, "query", torch.ones(1000, 16))[:, 0]
    assert (added[:500] == 48).all()
    assert set(added[500:].tolist()) == {0.0, 32.0, 64.0, 96.0}
    assert abs(added[500:].mean() - 48) < 4


def test_an_adapter_folder_opens_in_peft_and_gives_the_same_states(system, tmp_path, tiny_roberta):
    from dynamo_mtl.model.batch import Window, build_batch

    names = system.model.task_names
    save_system(system, tmp_path / "saved")
    ids = torch.randint(5, 500, (1, 17))
    batch = build_batch([Window(ids[0].tolist(), 0)], [], system.first_position)
    for index, name in enumerate(names):
        weights = torch.eye(len(names))[index : index + 1]
        with torch.no_grad():
            ours = system.model.eval()(batch, weights).hidden[:17]
            base = transformers.RobertaModel.from_pretrained(tiny_roberta, add_pooling_layer=False).eval()
            theirs = peft.PeftModel.from_pretrained(base, tmp_path / "saved" / "adapters" / name).eval()
            expected = theirs(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
            plain = transformers.RobertaModel.from_pretrained(tiny_roberta, add_pooling_layer=False).eval()
            assert (plain(ids).last_hidden_state[0] - expected).abs().max() > 1e-2
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
        settings = json.loads((tmp_path / "saved" / "adapters" / name / "adapter_config.json").read_text())
        stored = load_file(tmp_path / "saved" / "adapters" / name / "adapter_model.safetensors")
        assert settings["r"] == next(v for k, v in stored.items() if "lora_A" in k).shape[0]


def test_unknown_target_module_is_refused():
    with pytest.raises(ValueError, match="choose from query, key"):
        LoraConfig(target_modules=["quary"])


def test_rank_stabilised_scaling():
    assert LoraConfig(rank=16, alpha=8.0).scaling == 0.5
    assert LoraConfig(rank=16, alpha=8.0, use_rslora=True).scaling == 2.0
