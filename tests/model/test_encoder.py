"""The written-out encoder against transformers, with padding and with a prefix-LM order."""

import pytest
import torch
import transformers
from torch.nn import functional as F

from dynamo_mtl.errors import BackboneError
from dynamo_mtl.model.backbone import find_backbone, load_backbone, read_encoder_config
from dynamo_mtl.model.batch import Target, Window, build_batch
from dynamo_mtl.model.encoder import Cache, Encoder, PackedAttention

LENGTHS = [5, 9, 30, 12, 31, 2]
SHAPE = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
FAMILIES = {
    "bert": (
        transformers.BertModel,
        transformers.BertConfig(**SHAPE, max_position_embeddings=80, initializer_range=0.3),
    ),
    "roberta": (
        transformers.RobertaModel,
        transformers.RobertaConfig(
            **SHAPE, max_position_embeddings=82, type_vocab_size=1, pad_token_id=1, initializer_range=0.3
        ),
    ),
    "xlm-roberta": (
        transformers.XLMRobertaModel,
        transformers.XLMRobertaConfig(
            **SHAPE, max_position_embeddings=82, type_vocab_size=1, pad_token_id=1, initializer_range=0.3
        ),
    ),
    "camembert": (
        transformers.CamembertModel,
        transformers.CamembertConfig(
            **SHAPE, max_position_embeddings=82, type_vocab_size=1, pad_token_id=1, initializer_range=0.3
        ),
    ),
}


def _published(family, tmp_path):
    model_class, config = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # biases and norms must matter too
    model.save_pretrained(tmp_path)
    return model


def _ours(folder) -> Encoder:
    from dynamo_mtl.model.backbone import _read_weights

    encoder = Encoder(read_encoder_config(folder))
    encoder.load_state_dict(_read_weights(folder / "model.safetensors")[0])
    return encoder.eval()


def _sequences(vocabulary):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, vocabulary, (n,), generator=generator).tolist() for n in LENGTHS]


def _run(encoder: Encoder, batch, record=None):
    hidden = encoder.embed(encoder.word_embeddings(batch.ids), batch.positions)
    attention = PackedAttention(batch.trunk_plan, encoder.config.num_heads, record)
    return encoder.run(hidden, attention, 0, encoder.config.num_layers)[: len(batch.windows)]


def _assert_equal_to(model, encoder: Encoder, sequences) -> None:
    first = encoder.config.first_position
    packed = build_batch([Window(ids, row) for row, ids in enumerate(sequences)], [], first)
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), 1 if first else 0)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).last_hidden_state[mask.bool()]
        torch.testing.assert_close(_run(encoder, packed), expected, atol=1e-5, rtol=0)

    targets = [Target(1, "a", sequences[0][:4]), Target(4, "a", sequences[2][:2]), Target(0, "b", sequences[3][:1])]
    batch = build_batch([Window(s, row) for row, s in enumerate(sequences)], targets, first)
    recorded = []
    with torch.no_grad():
        _run(encoder, batch, recorded)
        ids = torch.cat(list(batch.target_ids.values()))
        words = encoder.word_embeddings(F.pad(ids, (0, len(batch.target_positions) - len(ids))))
        attention = PackedAttention(batch.target_plan, encoder.config.num_heads, before=recorded)
        hidden = encoder.embed(words, batch.target_positions)
        got = encoder.run(hidden, attention, 0, encoder.config.num_layers)
        place = 0
        for target in targets:
            source = sequences[target.window]
            order = torch.tensor([0] * len(source) + list(range(1, len(target.ids) + 1)))
            allowed = order[None, :] <= order[:, None]
            mask = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))[None, None]
            full = torch.tensor([source + list(target.ids)])
            expected = model(full, attention_mask=mask).last_hidden_state[0, len(source) :]
            piece = got[place : place + len(target.ids)]
            torch.testing.assert_close(piece, expected, atol=1e-5, rtol=0)
            place += len(target.ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_equals_transformers_with_padding_and_with_a_prefix_lm_order(family, tmp_path):
    model = _published(family, tmp_path)
    model.set_attn_implementation("eager")
    _assert_equal_to(model, _ours(tmp_path), _sequences(120))


def test_minilm_equals_transformers():
    backbone = load_backbone("minilm")
    model = transformers.AutoModel.from_pretrained(backbone.folder, attn_implementation="eager").eval()
    _assert_equal_to(model, backbone.encoder, _sequences(20000))
    assert not any(p.requires_grad for p in backbone.encoder.parameters())


def test_packed_equals_one_by_one(tmp_path):
    _published("roberta", tmp_path)
    encoder = _ours(tmp_path)
    sequences = _sequences(120)
    with torch.no_grad():
        together = _run(encoder, build_batch([Window(s, row) for row, s in enumerate(sequences)], [], 2))
        alone = [_run(encoder, build_batch([Window(s, 0)], [], 2)) for s in sequences]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_cache_gives_the_states_of_a_full_pass(tmp_path):
    _published("roberta", tmp_path)
    encoder = _ours(tmp_path)
    sequence = _sequences(120)[2]
    source, target = sequence[:20], sequence[20:]
    recorded = []
    with torch.no_grad():
        batch = build_batch([Window(source, 0)], [Target(0, "a", target)], 2)
        _run(encoder, batch, recorded)
        attention = PackedAttention(batch.target_plan, 4, before=recorded)
        words = encoder.word_embeddings(F.pad(torch.tensor(target), (0, len(batch.target_positions) - len(target))))
        full = encoder.run(encoder.embed(words, batch.target_positions), attention, 0, 3)
        storage = torch.zeros(3, 2, 1, 4, 40, 8)
        for layer, pairs in enumerate(recorded):
            storage[layer, :, 0, :, :20] = pairs[:20].view(20, 2, 4, 8).permute(1, 2, 0, 3)
        cache = Cache(storage, torch.tensor([20]))
        for step, token in enumerate(target):
            words = encoder.word_embeddings(torch.tensor([token]))
            hidden = encoder.run(encoder.embed(words, cache.lengths + 2), cache, 0, 3)
            cache.advance()
            torch.testing.assert_close(hidden[0], full[step], atol=1e-5, rtol=0)


@pytest.mark.parametrize("has_amx", [True, False])
def test_attention_in_bf16_is_exact_but_for_rounding(has_amx, monkeypatch):
    """Against fp32, with gradient and without, whatever this CPU has. Fails if the mask or the scale is left out."""
    from dynamo_mtl.model import hardware
    from dynamo_mtl.model.attention import attention

    monkeypatch.setattr(hardware, "has_amx", lambda: has_amx)
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, 7, 8, dtype=torch.bfloat16) for _ in range(3))
    mask = torch.rand(2, 1, 7, 7) < 0.7
    mask[..., 0] = True
    expected = attention(query.float(), key.float(), value.float(), mask)
    for with_gradient in (True, False):
        with torch.set_grad_enabled(with_gradient):
            mixed = attention(query, key, value, mask)
        torch.testing.assert_close(mixed.float(), expected, atol=2e-2, rtol=2e-2)


def test_a_missing_backbone_names_three_ways(tmp_path):
    with pytest.raises(BackboneError, match=r"three ways.*online.*local folder.*minilm"):
        find_backbone("nobody/no-such-model")
    with pytest.raises(BackboneError, match="not a folder"):
        find_backbone("./no/such/folder")


def test_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "gpt2", "vocab_size": 1, "hidden_size": 1, "num_hidden_layers": 1,'
        '"num_attention_heads": 1, "intermediate_size": 1, "max_position_embeddings": 1}'
    )
    with pytest.raises(BackboneError, match="gpt2"):
        read_encoder_config(tmp_path)


def test_a_hub_id_is_fetched_at_its_revision_without_code_or_pickles(tiny_roberta, monkeypatch):
    import huggingface_hub

    asked = {}

    def stand_in(name, **options):
        asked.update(name=name, **options)
        return str(tiny_roberta)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in)
    backbone = load_backbone("owner/model", revision="abc")
    assert backbone.encoder.config.hidden_size == 32
    assert (asked["name"], asked["revision"]) == ("owner/model", "abc")
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in asked["allow_patterns"])


def test_a_published_language_model_head_is_a_start(tmp_path, tiny_roberta):
    """Weights saved from a masked language model carry a prefix and a head; both are understood."""
    import shutil

    config = transformers.RobertaConfig.from_pretrained(tiny_roberta)
    model = transformers.RobertaForMaskedLM(config)
    shutil.copytree(tiny_roberta, tmp_path / "mlm")
    model.save_pretrained(tmp_path / "mlm")
    backbone = load_backbone(str(tmp_path / "mlm"))
    assert torch.equal(backbone.transform["dense.weight"], model.lm_head.dense.weight)
    assert torch.equal(backbone.encoder.layers[3].output.weight, model.roberta.encoder.layer[3].output.dense.weight)
