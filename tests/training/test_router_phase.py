"""Phase 2: what the router is trained and judged on."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from dynamo_mtl.model.router import Routing
from dynamo_mtl.tasks.task import Example
from dynamo_mtl.training.examples import UNLABELLED_TIMES, ExampleSource
from dynamo_mtl.training.phases.phase import SCORE
from dynamo_mtl.training.phases.phase_2_router import (
    FeaturePhase,
    routing_validation,
    trunk_features,
    validation_features,
    warn_of_confusions,
)


@pytest.fixture
def source(system, tables):
    """Every text of a task that needs no context is crossed with another task's instruction."""
    data = system.config.data.model_copy(update={"crossed_rate": 1.0})
    system.config = system.config.model_copy(update={"data": data})
    return ExampleSource(system, tables)


def test_the_score_is_the_accuracy_on_bare_and_instructed_inputs(system, monkeypatch):
    chosen = {1.0: [0.8, 0.2, 0, 0, 0], 2.0: [0.4, 0.6, 0, 0, 0]}

    def router(features):
        weights = torch.tensor([chosen[value] for value in features[:, 0].tolist()])
        return Routing(weights.log(), weights)

    monkeypatch.setattr(system.model.router, "forward", router)
    held_out = {
        "bare": (torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1])),
        "instructed": (torch.tensor([[1.0], [1.0]]), torch.tensor([0, 1])),
        "crossed": (torch.tensor([[1.0]]), torch.tensor([1])),
    }
    values = routing_validation(system, held_out)
    assert (values["accuracy_bare"], values["accuracy_instructed"], values["accuracy_crossed"]) == (1.0, 0.5, 0.0)
    loss = -np.log([0.8, 0.6, 0.8, 0.2]).mean()
    assert values["routing_loss"] == pytest.approx(loss)
    assert values[SCORE] == pytest.approx(0.75 - 1e-3 * loss)


def test_a_collapse_is_warned_of_in_the_log(system, monkeypatch, caplog):
    """Fails if the alarm is not raised where training validates the router."""
    weights = torch.eye(5)[[0] * 10]
    monkeypatch.setattr(system.model.router, "forward", lambda features: Routing(weights, weights))
    routing_validation(system, {"bare": (torch.zeros(10, 1), torch.tensor([0, 1, 2, 3, 4] * 2))})
    assert "routing of validation inputs: the adapter of sentiment takes nearly all" in caplog.text
    assert "the adapter of qa is nearly dead" in caplog.text


def test_tasks_that_the_router_confuses_are_named_but_not_those_of_one_group(system, monkeypatch, caplog):
    sent = torch.eye(5)[[0, 1, 1, 1, 1, 2, 3, 3, 4, 4]]
    monkeypatch.setattr(system.model.router, "forward", lambda features: Routing(sent, sent))
    held_out = {"bare": (torch.zeros(10, 1), torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 4, 4]))}
    warn_of_confusions(system, held_out)
    assert "1 of 2 plain inputs of sentiment are sent to qa" in caplog.text
    assert "1 of 2 plain inputs of summarization are sent to code_generation" in caplog.text
    caplog.clear()
    tasks = {name: task.model_copy(update={"group": "same"}) for name, task in system.config.tasks.items()}
    system.config = system.config.model_copy(update={"tasks": tasks})
    warn_of_confusions(system, held_out)
    warn_of_confusions(system, {})
    assert caplog.text == ""


def test_every_kind_of_validation_input_is_there(source, session_config):
    held_out = validation_features(source, session_config.training)
    count = session_config.training.eval_examples
    assert set(held_out) == {"bare", "instructed", "crossed", "viewed"}
    features, routes = held_out["bare"]
    assert torch.bincount(routes).tolist() == [count] * 5
    assert torch.equal(routes, held_out["instructed"][1])
    assert len(held_out["crossed"][1]) == 4 * count
    first = source.tables["qa"].validation[0]
    example = source.system.encode_for_router(first["text"], first["context"], None, "qa")
    torch.testing.assert_close(features[count], trunk_features(source.system, [example], 8192)[0][0])


def test_twins_are_the_same_text_under_two_wordings(source, session_config):
    config = session_config.training
    phase = FeaturePhase(source, config, validation_features(source, config))
    twins = 0
    for step in range(phase.order.steps_per_epoch):
        batch = phase.draw(step)
        rows = [int(phase.rows[task][place]) for task, place in phase.order.batch(step)]
        assert torch.equal(batch.features[: len(rows)], phase.features[rows].float())
        for first, second in batch.twins.tolist():
            assert phase.twins[rows[first]] == rows[first] + 1
            assert torch.equal(batch.features[second], phase.features[rows[first] + 1].float())
            assert batch.routes[first] == batch.routes[second]
            twins += 1
    assert twins > 0


def test_a_task_of_few_long_texts_is_drawn_more_often_than_its_share(source, session_config):
    """Every task has the same number of tokens, so those of long texts have few inputs: √n of each is drawn, not n."""
    router = session_config.training.router.model_copy(update={"examples_per_task": 200, "tokens_per_task": 1500})
    config = session_config.training.model_copy(update={"router": router})
    phase = FeaturePhase(source, config, validation_features(source, config))
    sizes = np.array([len(rows) for rows in phase.rows])
    assert sizes.max() > 2 * sizes.min(), sizes
    drawn = Counter(task for step in range(20 * phase.order.steps_per_epoch) for task, _ in phase.order.batch(step))
    shares = np.array([drawn[task] for task in range(len(sizes))]) / drawn.total()
    np.testing.assert_allclose(shares, np.sqrt(sizes) / np.sqrt(sizes).sum(), rtol=0.15)


def test_unlabelled_inputs_and_general_texts_stand_evenly_among_the_rows(source):
    """The user's texts are all read, whatever the number of general ones, which are at most half as many as rows."""
    own = source.tables["sentiment"]
    size = len(own.train)
    extra, general = (
        [Example(f"{kind} {n}", None, "") for n in range(count)] for kind, count in (("own", 3), ("any", 500))
    )
    changed = replace(own, unlabelled=extra, general=general)
    more = ExampleSource(source.system, {**source.tables, "sentiment": changed})
    rows = more.router_rows("sentiment", size, np.random.default_rng(0))
    texts = [more.row("sentiment", row).text for row in rows if row >= size]
    assert Counter(text for text in texts if text.startswith("own")) == {f"own {n}": UNLABELLED_TIMES for n in range(3)}
    assert sum(text.startswith("any") for text in texts) == -(-size // 2)
    places = [place for place, row in enumerate(rows) if row >= size]
    assert max(np.diff(places)) <= 4
    assert sorted(row for row in rows if row < size) == list(range(size))
    plain = source.router_rows("sentiment", size, np.random.default_rng(0))
    assert [row for row in rows if row < size] == [row for row in plain if row < size]
    few = ExampleSource(source.system, {**source.tables, "sentiment": replace(own, unlabelled=extra * 100, general=[])})
    rows = few.router_rows("sentiment", 5, np.random.default_rng(0))
    assert sum(row >= size for row in rows) == 300
