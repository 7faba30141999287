"""Each baseline does what it says, and nothing else."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dynamo_mtl.config import load_config
from dynamo_mtl.evaluation.compared_systems import (
    ArrowProbe,
    ComparedSystem,
    choose_by_arrow,
    choose_by_router,
    choose_nearest_centroid,
    choose_oracle,
    choose_random,
    main_directions,
    mix_softly,
    mix_uniformly,
    without_adapters,
)
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.model.batch import to_device
from dynamo_mtl.model.encoder import SITES, PackedAttention
from dynamo_mtl.model.mixing import mix_adapters
from dynamo_mtl.model.router import plan_pooling, pool
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.system import build_system
from dynamo_mtl.tasks.encoding import collate
from dynamo_mtl.tasks.task import Example

TEXTS = ["A fine film.", "The cat sat on the mat, and the dog did not.", "Return the sum of two numbers.", "Red bus."]
INPUTS = [TextInput(text) for text in TEXTS]
TRUE = ["sentiment", "translation", "code_generation", "translation"]


@pytest.fixture
def predictor(system):
    """The small system with adapters that do something."""
    torch.manual_seed(3)
    for name in system.tasks:
        for parameter in system.model.bank[name].parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return Predictor(system)


def _batch(system, texts):
    examples = [system.encode_for_router(text, None, None, "sentiment") for text in texts]
    return to_device(collate(examples, system.first_position), system.device).batch


def test_the_oracle_is_told_the_true_task(predictor):
    choice = choose_oracle(INPUTS, TRUE)
    assert (choice.tasks, choice.weights) == (TRUE, None)
    assert [p.task for p in ComparedSystem(predictor, choose_oracle).answer(INPUTS, TRUE)] == TRUE


def test_the_router_chooses_as_the_pass_that_answers_does(predictor):
    by_router = choose_by_router(predictor)(INPUTS, TRUE)
    alone = ComparedSystem(predictor, choose_by_router(predictor)).answer(INPUTS, TRUE)
    routed = ComparedSystem(predictor, choose_oracle, routed=True).answer(INPUTS, TRUE)
    assert by_router.tasks == [p.task for p in routed] == [p.task for p in alone]
    assert [p.answer for p in routed] == [p.answer for p in alone]


def test_uniform_weights_are_one_over_n(predictor):
    choice = mix_uniformly(predictor.system)(INPUTS, TRUE)
    assert choice.tasks == TRUE
    assert torch.equal(choice.weights, torch.full((4, 5), 0.2))


def test_random_is_seeded_and_gives_each_task_its_share(predictor):
    many = INPUTS * 1000
    tasks = choose_random(predictor.system, 0)(many, TRUE * 1000).tasks
    assert tasks == choose_random(predictor.system, 0)(many, TRUE * 1000).tasks
    assert tasks != choose_random(predictor.system, 1)(many, TRUE * 1000).tasks
    counts = [tasks.count(name) for name in predictor.system.tasks]
    assert min(counts) > 700
    assert max(counts) < 900


def test_the_base_is_the_model_without_its_adapters(predictor):
    choice = without_adapters(predictor.system)(INPUTS, TRUE)
    assert not choice.weights.any()
    answered = predictor.predict(INPUTS, choice.tasks, choice.weights)
    with_adapters = predictor.predict(INPUTS, TRUE)
    for name in predictor.system.tasks:
        for parameter in predictor.system.model.bank[name].parameters():
            torch.nn.init.zeros_(parameter)
    assert [p.answer for p in answered] == [p.answer for p in predictor.predict(INPUTS, TRUE)]
    assert [p.answer for p in answered] != [p.answer for p in with_adapters]


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_soft_mixing_uses_the_routers_own_weights(predictor, top_k):
    choice = mix_softly(predictor, top_k)(INPUTS, TRUE)
    batch = _batch(predictor.system, TEXTS)
    with torch.no_grad():
        weights = predictor.system.model.eval().router(predictor.system.model.trunk(batch).features).weights
    kept = weights.topk(top_k, dim=1)
    expected = torch.zeros_like(weights).scatter(1, kept.indices, kept.values / kept.values.sum(1, keepdim=True))
    torch.testing.assert_close(choice.weights, expected, atol=1e-5, rtol=0)
    assert choice.tasks == [list(predictor.system.tasks)[i] for i in weights.argmax(1)]


def test_the_nearest_centroid_by_hand(predictor):
    names = list(predictor.system.tasks)
    training = {name: [TextInput(f"{name} {i} {text}") for i, text in enumerate(TEXTS)] for name in names}
    with torch.no_grad():
        model = predictor.system.model.eval()
        groups = [_batch(predictor.system, [i.text for i in rows]) for rows in training.values()]
        features = [model.trunk(batch).features for batch in groups]
        asked = model.trunk(_batch(predictor.system, TEXTS)).features
    means = np.stack([F.layer_norm(f, f.shape[1:]).numpy().mean(0) for f in features])
    rows = F.layer_norm(asked, asked.shape[1:]).numpy()
    cosine = (rows @ means.T) / np.linalg.norm(rows, axis=1)[:, None] / np.linalg.norm(means, axis=1)
    expected = [names[i] for i in cosine.argmax(1)]
    assert choose_nearest_centroid(predictor, training)(INPUTS, TRUE).tasks == expected
    own = [rows[0] for rows in training.values()]
    # What a centroid was made of lies nearer to it than chance would have it.
    chosen = choose_nearest_centroid(predictor, training)(own, TRUE).tasks
    assert sum(a == b for a, b in zip(chosen, names, strict=True)) >= 3


def test_arrow_directions_are_the_first_right_singular_vectors_of_b_a(predictor):
    model = predictor.system.model
    directions = main_directions(model, 2, "query")
    for name, direction in zip(model.task_names, directions, strict=True):
        down, up = model.bank[name].pair(2, "query")
        _, _, right = np.linalg.svd((up @ down).detach().numpy())
        assert abs(float(direction @ torch.from_numpy(right[0].copy()))) == pytest.approx(1, abs=1e-4)
    assert main_directions(model, 2, "output") is None  # question answering has no adapter there


def test_arrow_chooses_the_adapter_that_the_states_point_along(predictor):
    """One adapter is pointed along the states of an input at every site: that one must be chosen."""
    model = predictor.system.model
    batch = _batch(predictor.system, [TEXTS[0]])
    seen = {}

    class Note:
        def __call__(self, layer, sites, inputs, output):
            for site in sites:
                seen.setdefault((layer, site), inputs.mean(0))
            return output

        def act_at(self, layer, site):
            return True

    with torch.no_grad():
        attention = PackedAttention(batch.trunk_plan, model.encoder.config.num_heads)
        model.encoder.run(model.trunk(batch).hidden, attention, model.tap_layer, 4, Note())
        for layer in range(model.tap_layer, 4):
            for site in ("query", "value"):
                down, _ = model.bank["summarization"].pair(layer, site)
                down.zero_()
                down[0] = seen[layer, site] * 10
    assert choose_by_arrow(predictor)(INPUTS[:1], TRUE[:1]).tasks == ["summarization"]
    expected = {(layer, site) for layer in (1, 2, 3) for site in SITES if site in ("query", "value")}
    assert set(ArrowProbe(model, batch).directions) == expected


def _build(tiny_settings, tmp_path, **model):
    settings = {**tiny_settings, "model": {**tiny_settings["model"], **model}}
    (tmp_path / "config.yaml").write_text(dump_yaml(settings))
    torch.manual_seed(0)
    config = load_config(tmp_path / "config.yaml")
    return build_system(config, lambda task: [Example("a", None, "Ein Text.")] * 100, torch.device("cpu"))


def test_a_single_lora_has_the_summed_rank_and_acts_on_every_input(tiny_settings, tmp_path):
    system = _build(tiny_settings, tmp_path, adapters="shared")
    model = system.model
    heads = sum(p.numel() for p in model.heads.parameters())
    ranks = {n: c.rank for n, c in system.config.lora_configs.items()}
    at_query = sum((32 + 32) * rank for rank in ranks.values())
    at_wide = sum((32 + 64) * ranks[n] for n in ranks if n in ("summarization", "code_generation", "translation"))
    at_square = sum((32 + 32) * ranks[n] for n in ranks if n in ("summarization", "code_generation", "translation"))
    # Layers 1 to 3: query and value of all tasks, the other square and wide products of those with all linear ones.
    assert model.trainable_parameters() - heads == 3 * (2 * at_query + 2 * at_square + 2 * at_wide)
    assert torch.equal(model.oracle_weights(torch.tensor([0, 3])), torch.ones(2, 5))
    for name in model.task_names:
        for parameter in model.bank[name].parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    model.eval()
    inputs = torch.randn(6, 32)
    mix = mix_adapters(model.bank, torch.ones(2, 5), torch.tensor([0, 0, 1, 1, 1, 0]), torch.float32)
    with torch.no_grad():
        found = mix(2, ("query",), inputs, torch.zeros(6, 32))
        pairs = [(model.bank[n].pair(2, "query"), model.bank[n].config.scaling) for n in model.task_names]
        down = torch.cat([pair[0] for pair, _ in pairs])
        up = torch.cat([pair[1] * scaling for pair, scaling in pairs], dim=1)
    assert down.shape == (sum(ranks.values()), 32)
    torch.testing.assert_close(found, inputs @ down.T @ up.T, atol=1e-4, rtol=1e-4)


def test_full_fine_tuning_trains_all_of_the_backbone_and_no_adapter(tiny_settings, tmp_path):
    model = _build(tiny_settings, tmp_path, adapters="none", freeze_backbone=False).model
    heads, backbone = (sum(p.numel() for p in m.parameters()) for m in (model.heads, model.encoder))
    assert model.trainable_parameters() == heads + backbone
    assert not model.oracle_weights(torch.tensor([1, 2])).any()


def test_the_two_pass_router_reads_the_last_layer_of_a_pass_without_adapters(tiny_settings, tmp_path):
    system = _build(tiny_settings, tmp_path, router_input="last_hidden")
    model = system.model
    batch = _batch(system, TEXTS)
    with torch.no_grad():
        attention = PackedAttention(batch.trunk_plan, model.encoder.config.num_heads)
        hidden = model.encoder.embed(model.encoder.word_embeddings(batch.ids), batch.positions)
        last = model.encoder.run(hidden, attention, 0, 4)
        expected = pool(last, plan_pooling(batch, model.separator))
        assert torch.equal(model.trunk(batch).features, expected)
    assert model.router.feature_size == 5 * 32


def test_parameters_are_counted_by_part(tiny_settings, tmp_path):
    model = _build(tiny_settings, tmp_path).model
    counts = model.parameter_counts()
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    tables = [model.head(n).embeddings for n in ("summarization", "code_generation", "translation")]
    assert counts["target_vocabularies"] == sum(len(table) for table in tables) * 32
    assert model.trainable_parameters() == sum(counts.values()) - counts["backbone"]
