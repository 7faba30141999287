"""The routed forward: one pass for mixed tasks, whose work does not grow with the number of tasks."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.model.batch import Target, Window, build_batch
from dynamo_mtl.model.encoder import PackedAttention
from dynamo_mtl.model.model_config import ModelConfig, check_against_backbone
from dynamo_mtl.model.padded_plan import round_up
from dynamo_mtl.model.router import Router, RouterConfig, plan_pooling, pool, top_k_weights
from dynamo_mtl.tasks.encoding import collate
from dynamo_mtl.tasks.tables import example_at


def _examples(system, tables, names):
    return [system.encode(example_at(tables[n].train, i), n) for i, n in enumerate(names)]


def _one_hot(routes, count):
    return F.one_hot(routes, count).float()


def test_a_mixed_batch_gives_what_each_example_gives_alone(system, tables):
    system.model.eval()
    names = list(system.tasks) * 2
    examples = _examples(system, tables, names)
    together = collate(examples, system.first_position)
    weights = _one_hot(together.routes, len(system.tasks))
    with torch.no_grad():
        mixed = system.model(together.batch, weights)
        features = system.model.trunk(together.batch).features
        for view in together.views:
            losses = system.tasks[view.task].losses(system.model.head(view.task), mixed.hidden, view)
            for row, index in enumerate(view.examples.tolist()):
                alone = collate([examples[index]], system.first_position)
                output = system.model(alone.batch, weights[index : index + 1])
                expected = system.tasks[view.task].losses(system.model.head(view.task), output.hidden, alone.views[0])
                torch.testing.assert_close(losses[view.label_rows == row], expected, atol=1e-4, rtol=1e-4)
                trunk = system.model.trunk(alone.batch)
                torch.testing.assert_close(trunk.features[0], features[index], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_linear_calls_and_adapter_operations_do_not_grow_with_the_number_of_tasks(
    system, tables, monkeypatch, training
):
    system.model.train(training)
    counts = {"backbone": 0, "products": 0}
    for module in system.model.encoder.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_: counts.__setitem__("backbone", counts["backbone"] + 1))
    real_linear, real_bmm = F.linear, torch.bmm

    def counted(function):
        def call(*args, **kwargs):
            counts["products"] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(F, "linear", counted(real_linear))
    monkeypatch.setattr(torch, "bmm", counted(real_bmm))
    seen = []
    for names in (["translation"] * 5, ["translation", "summarization"] * 3, list(system.tasks)):
        packed = collate(sorted(_examples(system, tables, names), key=lambda e: e.route), system.first_position)
        weights = torch.full((len(names), len(system.tasks)), 0.2)
        counts.update(backbone=0, products=0)
        system.model(packed.batch, weights)
        seen.append(dict(counts))
    assert seen[0]["backbone"] > 0
    assert seen[0]["products"] > seen[0]["backbone"]
    assert seen[0] == seen[1] == seen[2]


def test_the_router_reads_the_first_token_and_means_of_all_windows():
    hidden = torch.tensor([[1.0], [3.0], [5.0], [9.0], [2.0]])
    batch = build_batch([Window([5, 6], 0), Window([5, 6], 0), Window([5], 1)], [], 0)
    features = pool(hidden, plan_pooling(batch, separator=6))
    # Example 0: first 1, means 4.5, openings of its first window alone (1 and 3); example 1: one token.
    torch.testing.assert_close(features, torch.tensor([[1.0, 4.5, 4.5, 2.0, 2.0], [2.0] * 5]))


def test_the_lead_is_what_stands_before_the_context_and_the_openings_are_the_first_tokens():
    question = Window([0, 5, 6, *[7] * 14, 6], 0)
    batch = build_batch([question, Window([0, 9, 9, 6], 1), Window([0, 9], 1)], [], 0)
    read = plan_pooling(batch, separator=6)
    assert read.prefix[:, 0].tolist() == [0, 18]
    assert read.prefix[0].tolist() == list(range(16))
    assert read.segments.tolist() == [1] * 3 + [0] * 15 + [3] * 6
    assert read.counts.flatten().tolist() == [15, 3, 0, 6]
    short, long = (weights.tolist() for weights in read.prefix_masks)
    assert short == [[1.0] * 8 + [0.0] * 8, [1.0] * 4 + [0.0] * 12]
    assert long == [[1.0] * 16, [1.0] * 4 + [0.0] * 12]
    features = pool(torch.arange(24.0)[:, None], read)
    # Example 0: first 0, means of 0 to 17, 0 to 2, 0 to 7 and 0 to 15; example 1: openings of its first window.
    expected = [[0.0, 8.5, 1.0, 3.5, 7.5], [18.0, 20.5, 20.5, 19.5, 19.5]]
    torch.testing.assert_close(features, torch.tensor(expected))


def test_the_router_reads_the_embeddings_and_every_trunk_layer(system, tables):
    batch = collate(_examples(system, tables, list(system.tasks)), system.first_position).batch
    encoder = system.model.encoder
    attention = PackedAttention(batch.trunk_plan, encoder.config.num_heads)
    with torch.no_grad():
        states = [encoder.embed(encoder.word_embeddings(batch.ids), batch.positions)]
        for layer in range(system.model.tap_layer):
            states.append(encoder.run(states[-1], attention, layer, layer + 1))
        read = plan_pooling(batch, system.model.separator)
        expected = torch.cat([pool(state, read) for state in states], dim=1)
    assert len(states) > 1
    torch.testing.assert_close(system.model.trunk(batch).features, expected)


def test_top_k_weights_are_renormalised():
    weights = torch.tensor([[0.5, 0.3, 0.2]])
    torch.testing.assert_close(top_k_weights(weights, 2), torch.tensor([[0.625, 0.375, 0.0]]))
    torch.testing.assert_close(top_k_weights(weights, 1), torch.tensor([[1.0, 0.0, 0.0]]))


def test_temperature_follows_its_schedule_and_its_bounds():
    router = Router(RouterConfig(hidden_sizes=[4], temperature=2.0, final_temperature=0.5, min_temperature=0.7), 6, 3)
    router.schedule_temperature(0.5)
    assert router.temperature.item() == pytest.approx(1.0)
    router.schedule_temperature(1.0)
    assert router.temperature.item() == pytest.approx(0.7)  # clamped
    features = torch.randn(2, 6)
    routing = router.eval()(features)
    torch.testing.assert_close(routing.weights, torch.softmax(routing.logits / 0.7, dim=-1))


def test_the_backbone_stays_in_evaluation_mode_and_without_gradient(system):
    system.model.train()
    assert not system.model.encoder.training
    assert system.model.router.training
    assert not any(p.requires_grad for p in system.model.encoder.parameters())


def test_target_embeddings_get_gradients_through_the_trunk(system, tables):
    packed = collate(_examples(system, tables, ["translation"]), system.first_position)
    output = system.model(packed.batch, torch.full((1, 5), 0.2))
    target = output.hidden[packed.views[0].target[0] :]
    (target * torch.randn_like(target)).sum().backward()
    head = system.model.head("translation")
    used = packed.batch.target_ids["translation"]
    assert head.embeddings.grad[used].abs().sum(dim=1).gt(0).all()
    assert all(p.grad is None for p in system.model.encoder.parameters())


def test_router_only_windows_do_not_run_deeper(system):
    batch = build_batch([Window([0, 9, 2], 0), Window([0, 8, 2], 0, deep=False)], [Target(0, "translation", [0])], 2)
    output = system.model.eval()(batch)
    assert batch.deep_tokens[:3].tolist() == [0, 1, 2]
    assert len(output.hidden) == len(batch.top_examples) == round_up(3) + round_up(1)
    assert batch.top_starts.tolist() == [0, -1]


def test_contradictions_with_the_backbone_are_refused(system):
    with pytest.raises(ConfigError, match=r"tap_layer: found 4.*has 4 layers"):
        check_against_backbone(ModelConfig(tap_layer=4), system.backbone)
    with pytest.raises(ConfigError, match=r"hidden_size: found 768.*has 32"):
        check_against_backbone(ModelConfig(hidden_size=768), system.backbone)
