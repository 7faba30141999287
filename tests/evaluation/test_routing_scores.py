"""What a wrong route costs, and whether inputs of an unknown task would be noticed."""

import numpy as np
import pytest
import torch

from dynamo_mtl.evaluation.cross_adapter import score_cross_adapter
from dynamo_mtl.evaluation.inputs import make_routed_inputs, task_input
from dynamo_mtl.evaluation.rejection import score_rejection
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.metrics.routing import auroc
from dynamo_mtl.model.ood import RouterMemory
from dynamo_mtl.tasks.tables import first_examples
from dynamo_mtl.training import router_memory as known
from dynamo_mtl.training.examples import ExampleSource


@pytest.fixture
def examples(system, tables):
    return {name: first_examples(tables[name].validation, 6) for name in system.tasks}


def test_a_misroute_costs_what_answering_so_would_score(system, examples):
    """Fails if rows and columns are exchanged, or the head follows where the adapter alone should."""
    found = score_cross_adapter(Predictor(system), examples)
    names = list(system.tasks)
    predictor = Predictor(system)
    for task, head, adapter, kind in (
        ("qa", "qa", "sentiment", "adapter_only"),
        ("sentiment", "sentiment", "qa", "adapter_only"),
        ("qa", "qa", "qa", "routed"),
    ):
        rows = examples[task]
        weights = torch.eye(5)[[names.index(adapter)] * len(rows)]
        made = predictor.predict([task_input(system, task, row) for row in rows], [head] * len(rows), weights)
        score = system.tasks[task].score([p.answer for p in made], rows)[system.tasks[task].main_metric]
        assert found[kind][names.index(task)][names.index(adapter)] == pytest.approx(score)
    for i in range(5):
        assert found["routed"][i][i] == found["adapter_only"][i][i]
        assert all(found["routed"][i][j] == 0 for j in range(5) if j != i)  # every type answers in its own way


def test_crossed_inputs_carry_the_instruction_of_the_task_they_count_for(system, examples):
    kinds = make_routed_inputs(system, examples, 0)
    texts = {row.text: name for name, rows in examples.items() for row in rows}
    assert len(kinds["bare"]) == len(kinds["instructed"]) == 30
    assert len(kinds["crossed"]) == 24  # questions with a context are not crossed
    for routed in kinds["crossed"]:
        origin = texts[routed.input.text]
        assert routed.task not in (origin, "qa")
        assert routed.input.instruction in system.tasks[routed.task].evaluation_instructions
    for routed in kinds["instructed"]:
        assert routed.input.instruction in system.tasks[routed.task].evaluation_instructions
        assert routed.input.instruction not in system.tasks[routed.task].instructions


def test_a_task_that_is_left_out_is_rejected_where_its_features_lie_apart(system, tables, session_config, monkeypatch):
    """Features are made up: sentiment lies far from the others, which overlap."""
    source = ExampleSource(system, tables)
    generator = torch.Generator().manual_seed(0)

    def features(system, examples, budget):
        routes = torch.tensor([e.route for e in examples])
        values = torch.zeros(len(examples), system.model.router.feature_size)
        values[:, :6] = torch.randn(len(examples), 6, generator=generator)
        values[:, 6] = 20.0 * (routes == 0)
        return values, routes

    monkeypatch.setattr(known, "trunk_features", features)
    monkeypatch.setattr("dynamo_mtl.evaluation.rejection.trunk_features", features)
    found = score_rejection(source, session_config.training, 0.9)
    assert list(found) == list(system.tasks)
    assert found["sentiment"]["auroc"] == 1.0
    assert found["sentiment"]["rejected"] == 1.0
    assert 0.2 < found["qa"]["auroc"] < 0.8
    assert found["qa"]["n"] == 12


def test_what_is_unknown_is_not_learned_from(system, tables, session_config):
    """Neither a text of the task that is left out nor one with its instruction. Fails if crossed texts stay."""
    inputs = known.collect_router_memory(ExampleSource(system, tables), session_config.training)
    left = (inputs.routes != 0) & (inputs.origins != 0)
    crossed = inputs.routes != inputs.origins
    assert (crossed & ~left).any()
    ood = inputs.fit(0, unknown=0)
    assert len(ood.references) == int(left.sum())
    assert len(inputs.fit(0).references) == len(inputs.routes)


def test_kinds_of_text_do_not_count_as_noise_where_instructions_cross_them():
    """An unknown kind of text lies between two known ones. Fails if crossed inputs are grouped by their task alone."""
    generator = torch.Generator().manual_seed(0)
    routes, origins = torch.tensor([0, 0, 1, 1]).repeat(60), torch.tensor([0, 1, 0, 1]).repeat(60)

    def features(place):
        values = torch.zeros(len(place), 32)
        values[:, :6] = torch.randn(len(place), 6, generator=generator)
        values[:, 6] = place
        values[:, 7:9] = torch.tensor([100.0, -100.0])  # keeps the normalisation of a row from undoing the rest
        return values

    inputs = RouterMemory(features(10.0 * origins), routes, origins, torch.arange(240) < 120)
    ood = inputs.fit(0)
    familiar, unknown = ood(features(10.0 * origins)), ood(features(torch.full((50,), 5.0)))
    assert auroc(familiar.numpy(), unknown.numpy()) > 0.95


def test_auroc_equals_the_share_of_ordered_pairs():
    generator = np.random.default_rng(0)
    low, high = generator.integers(0, 6, 40), generator.integers(2, 9, 30)
    pairs = [(a < b) + 0.5 * (a == b) for a in low for b in high]
    assert auroc(low, high) == pytest.approx(np.mean(pairs))
