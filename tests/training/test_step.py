"""One update: mixed batches, micro-batches and idle adapters."""

import pickle

import pytest
import torch

from dynamo_mtl.config.training_config import TrainingConfig
from dynamo_mtl.model.adapter import LoraConfig
from dynamo_mtl.tasks.tables import example_at
from dynamo_mtl.training.objective import Objective
from dynamo_mtl.training.optimizer import drop_idle_gradients, make_optimizer, task_groups, warmup_and_decay
from dynamo_mtl.training.step import example_losses, make_step_batch, mixture_backward, task_backward


def _same(loss):
    return loss


@pytest.fixture
def quiet(system):
    """The system without any dropout, everything but the backbone trainable."""
    for module in system.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for adapter in system.model.bank.adapters:
        adapter.config = LoraConfig(**{**adapter.config.model_dump(), "dropout": 0.0})
    for part in (system.model.bank, system.model.heads, system.model.router):
        part.requires_grad_(True)
    return system.model.train() and system


def _examples(system, tables, per_task):
    return [system.encode(example_at(tables[n].train, i), n) for i in range(per_task) for n in system.tasks]


def _gradients(system):
    return {n: p.grad.clone() for n, p in system.model.named_parameters() if p.grad is not None}


def _step(system, examples, twins, budget, share):
    system.model.zero_grad(set_to_none=True)
    batch = make_step_batch(examples, twins, budget, system.collate)
    objective = Objective(TrainingConfig(entropy_weight=0.3, consistency_weight=1.0))
    values = mixture_backward(system, batch, objective, share, _same)
    return len(batch.micro), {n: float(v) for n, v in values.items()}, _gradients(system)


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_the_update_does_not_depend_on_micro_batches(quiet, tables, share):
    examples = _examples(quiet, tables, 3)
    examples.append(quiet.encode_for_router("Translate this: a film", None, None, "translation"))
    twins = [(0, len(examples) - 1)]
    one, values, gradients = _step(quiet, examples, twins, 100_000, share)
    many, values_many, gradients_many = _step(quiet, examples, twins, 150, share)
    assert one == 1
    assert many > 4
    assert values == pytest.approx(values_many, abs=1e-5)
    assert gradients.keys() == gradients_many.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_many[name], gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_a_mixed_batch_gives_the_gradients_of_separate_batches(quiet, tables):
    """With all rows at their known adapters, each task's gradients are those of its own batch times its share."""
    examples = _examples(quiet, tables, 2)
    _, _, mixed = _step(quiet, examples, [], 100_000, 0.0)
    for task in quiet.tasks:
        quiet.model.zero_grad(set_to_none=True)
        alone = make_step_batch([e for e in examples if e.task == task], [], 100_000, quiet.collate)
        task_backward(quiet, alone, quiet.route_of(task), _same)
        index = quiet.route_of(task)
        own = {
            n: g for n, g in _gradients(quiet).items() if n.startswith((f"bank.adapters.{index}.", f"heads.{index}."))
        }
        assert len(own) > 4
        for name, gradient in own.items():
            torch.testing.assert_close(mixed[name], gradient / 5, atol=1e-6, rtol=1e-3, msg=name)


def test_the_task_loss_reaches_the_router_through_the_mixture(quiet, tables):
    examples = _examples(quiet, tables, 1)
    batch = make_step_batch(examples, [], 100_000, quiet.collate)
    zero = {f"{term}_weight": 0.0 for term in ("routing", "consistency", "temperature")}
    objective = Objective(TrainingConfig(**zero, entropy_weight=1e-12))
    quiet.model.zero_grad(set_to_none=True)
    mixture_backward(quiet, batch, objective, 1.0, _same)
    assert quiet.model.router.mlp[-1].weight.grad.abs().max() > 1e-6


def test_an_idle_adapter_takes_no_step_at_all(quiet, tables):
    config = TrainingConfig(weight_decay=0.5)
    groups = [g for task in ("qa", "sentiment") for g in task_groups(quiet.model, task, config, 0.1, 0.1)]
    optimizer = make_optimizer(groups, quiet.device)
    before = {n: p.detach().clone() for n, p in quiet.model.named_parameters()}
    batch = make_step_batch([e for e in _examples(quiet, tables, 1) if e.task == "qa"], [], 100_000, quiet.collate)
    mixture_backward(quiet, batch, Objective(config), 1.0, _same)  # soft mixing: every adapter has a gradient
    assert quiet.model.bank["sentiment"].up["1_query"].grad is not None
    drop_idle_gradients(optimizer.param_groups, {"qa"})
    optimizer.step()
    index = quiet.route_of("sentiment")
    idle = {n for n in before if n.startswith((f"bank.adapters.{index}.", f"heads.{index}."))}
    after = dict(quiet.model.named_parameters())
    assert all(torch.equal(before[n], after[n]) for n in idle)
    assert not torch.equal(
        quiet.model.bank["qa"].up["1_query"], before[f"bank.adapters.{quiet.route_of('qa')}.up.1_query"]
    )
    assert not any(p in optimizer.state for g in groups if g["task"] == "sentiment" for p in g["params"])


def test_example_losses_are_the_means_of_each_examples_labels(quiet, tables):
    examples = _examples(quiet, tables, 2)
    together = example_losses(quiet, examples, 300)
    alone = [example_losses(quiet, [e], 300)[0] for e in examples]
    assert together == pytest.approx(alone, abs=1e-4)
    assert len(set(together)) == len(together)


def test_learning_rate_warms_up_and_decays():
    factor = warmup_and_decay(100, 0.1)
    assert factor(0) == pytest.approx(0.1)
    assert factor(9) == pytest.approx(1.0)
    assert factor(55) == pytest.approx(0.5)
    assert factor(100) == pytest.approx(0.0, abs=1e-9)


def test_lora_plus_gives_b_its_own_learning_rate(system):
    down, up, head = task_groups(system.model, "qa", TrainingConfig(loraplus_ratio=8.0), 1e-3, 5e-4)
    assert (down["lr"], up["lr"], head["lr"]) == (1e-3, 8e-3, 5e-4)
    assert {id(p) for p in up["params"]} == {id(p) for p in system.model.bank["qa"].up.parameters()}


def test_the_curriculum_ranks_from_easy_to_hard(session_config, system, tables):
    from dynamo_mtl.training.examples import ExampleSource
    from dynamo_mtl.training.phases.phase_3_joint import rank_by_loss

    bare = session_config.data.model_copy(update={"instruction_rate": 0.0})
    system.config = session_config.model_copy(update={"data": bare})
    source = ExampleSource(system, tables)
    ranked = rank_by_loss(source, session_config.training)
    assert {len(rows) for rows in ranked.values()} == {10}
    for task, rows in ranked.items():
        losses = example_losses(system, [system.encode(example_at(tables[task].train, r), task) for r in rows], 8192)
        assert losses == sorted(losses)
        assert losses[0] < losses[-1]
    assert ranked == rank_by_loss(source, session_config.training)


def test_a_batch_that_a_loader_process_sends_goes_without_the_model(system, tables):
    """Fails if a batch holds the system: each would carry the whole model through the queue."""
    batch = make_step_batch(_examples(system, tables, 1), [], 100_000, system.collate)
    sent = pickle.dumps(batch)
    assert b"DynamoModel" not in sent
    assert torch.equal(pickle.loads(sent).micro[0].batch.ids, batch.micro[0].batch.ids)
