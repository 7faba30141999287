"""A task more, a task less: what is added is learned, and nothing else changes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from dynamo_mtl.checkpoint.folder import MEMORY
from dynamo_mtl.cli import main
from dynamo_mtl.config import AddedTask, extended_config, load_config
from dynamo_mtl.errors import CheckpointError, ConfigError
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.lifecycle.add_task import add_task
from dynamo_mtl.lifecycle.added_task_report import added_task_report
from dynamo_mtl.lifecycle.branch_phase import (
    HELD_OUT,
    BranchInputs,
    BranchPhase,
    branch_odds,
    last_branch,
    limit_losses,
    set_prototype,
)
from dynamo_mtl.lifecycle.editing import remove_task, rename_task
from dynamo_mtl.model.ood import OutOfDistribution
from dynamo_mtl.model.router import Router, RouterConfig
from dynamo_mtl.storage import write_manifest
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.system import load_system
from dynamo_mtl.training.run import train

CPU = torch.device("cpu")
OLD = ("sentiment", "code_generation", "translation")
NEW = "translation_fr"
TEXTS = ["I love this movie!", "The man buys an apple.", "call the function foo with x"]


def _settings(tiny_settings, folder):
    data = {k: v for k, v in tiny_settings["data"].items() if not k.endswith("_data_path")}
    return {
        **tiny_settings,
        "data": data | {f"{name}_data_path": "sample" for name in OLD},
        "tasks": {name: tiny_settings["tasks"][name] for name in OLD},
        "lora_configs": {name: tiny_settings["lora_configs"][name] for name in OLD},
        "log_dir": str(folder / "logs"),
        "checkpoint_dir": str(folder / "checkpoints"),
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_settings):
    """A small system of three tasks, trained through all phases."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "config.yaml").write_text(dump_yaml(_settings(tiny_settings, folder)))
    return train(load_config(folder / "config.yaml"), (1, 2, 3))


OVERRIDES = [f"tasks.{NEW}.{setting}" for setting in (
    "target_language=French", "requires_instruction=true", "train_examples=60", "validation_examples=12",
    "target_vocabulary=300", "generation.max_new_tokens=12", "max_target_length=40",
)]  # fmt: skip


@pytest.fixture(scope="module")
def added(trained, tmp_path_factory):
    """The same system with a second translation, and its configuration."""
    place = tmp_path_factory.mktemp("added")
    config = extended_config(
        trained / "config.yaml", AddedTask(NEW, "translation", "sample"), [*OVERRIDES, f"log_dir={place}"]
    )
    return add_task(trained, place / "model", config), config


def _files(folder, *parts):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for part in parts for p in folder.glob(part)}


def test_adapters_heads_and_vocabularies_of_the_older_tasks_stay_as_they_are(trained, added):
    """Byte for byte. Fails if anything but the added task is trained, or saved in another form."""
    folder, _ = added
    parts = ("adapters/*/*", "heads/*", "vocabularies/*")
    before, after = _files(trained, *parts), _files(folder, *parts)
    assert before
    assert {name: content for name, content in after.items() if NEW not in name} == before
    assert {name for name in after if NEW in name} == {
        f"adapters/{NEW}/adapter_config.json", f"adapters/{NEW}/adapter_model.safetensors",
        f"heads/{NEW}.safetensors", f"vocabularies/{NEW}.json",
    }  # fmt: skip
    routers = load_file(trained / "router.safetensors"), load_file(folder / "router.safetensors")
    assert all(torch.equal(tensor, routers[1][name]) for name, tensor in routers[0].items())
    assert {name.split(".")[0] for name in routers[1].keys() - routers[0].keys()} == {"branches"}
    assert json.loads((folder / "dynamo.json").read_text())["tasks"] == [*OLD, NEW]


def test_answers_of_the_older_tasks_stay_the_same_to_the_bit(trained, added):
    old, new = DynamoInference(trained), DynamoInference(added[0])
    for task in OLD:
        for text in TEXTS:
            assert new.predict(text, task_hint=task) == old.predict(text, task_hint=task)


def test_the_router_keeps_the_older_tasks_shares_among_themselves(trained, added):
    old, new = DynamoInference(trained), DynamoInference(added[0])
    for text in TEXTS:
        before, after = old.route(text)["probabilities"], new.route(text)["probabilities"]
        rest = 1 - after[NEW]
        assert {task: after[task] / rest for task in OLD} == pytest.approx(before, rel=1e-4)


def test_the_report_says_what_has_changed(trained, added):
    folder, config = added
    found = added_task_report(trained, folder, config, 12)
    assert found["answers"] == {"n": 36, "identical": 36}
    assert set(found["routing"]["before"]["bare"]) == set(OLD)
    assert found["added"]["scores"]["oracle"]["n"] == 12
    assert set(found["added"]["routing"]) == {"instructed", "viewed"}  # bare ones are the other translation's
    falls = [
        found["routing"]["before"][kind][task] - found["routing"]["after"][kind][task]
        for kind in ("bare", "instructed")
        for task in OLD
    ]
    assert found["largest_fall"] == pytest.approx(100 * max(falls))


def test_its_inputs_are_remembered_and_known(trained, added):
    before, after = (load_system(folder, CPU)[0].model for folder in (trained, added[0]))
    assert len(after.memory) > len(before.memory)
    assert torch.equal(after.memory.features[: len(before.memory)], before.memory.features)
    assert set(after.memory.routes.tolist()) == {0, 1, 2, 3}
    assert len(after.ood.references) > len(before.ood.references)
    assert torch.equal(after.ood.projection, before.ood.projection)


def test_a_second_task_can_be_added_and_either_removed(added, tmp_path):
    config = extended_config(
        added[0] / "config.yaml",
        AddedTask("few", "sentiment", "sample", few_shot=True),
        ["tasks.few.train_examples=16", "tasks.few.validation_examples=12", "tasks.few.training.max_steps=2",
         "lora_configs.few.rank=4", f"log_dir={tmp_path}"],
    )  # fmt: skip
    folder = add_task(added[0], tmp_path / "two", config)
    both = load_system(folder, CPU)[0]
    assert [branch.is_prototype for branch in both.model.router.branches] == [False, True]
    one = load_system(remove_task(folder, tmp_path / "one", NEW), CPU)[0]
    assert list(one.tasks) == [*OLD, "few"]
    features = torch.randn(5, one.model.router.feature_size)
    whole, left = (found.model.eval().router(features).weights for found in (both, one))
    # The others share what the few-shot task leaves as before.
    assert torch.allclose(left[:, :3] / left[:, :3].sum(1, True), whole[:, :3] / whole[:, :3].sum(1, True), atol=1e-6)
    assert torch.equal(both.model.bank["few"].down["1_query"], one.model.bank["few"].down["1_query"])


def test_removing_a_task_of_the_first_training_leaves_the_others_shares(trained, tmp_path):
    folder = remove_task(trained, tmp_path / "model", "code_generation")
    before, after = DynamoInference(trained), DynamoInference(folder)
    assert after.task_names == ["sentiment", "translation"]
    for text in TEXTS:
        shares = before.route(text)["probabilities"]
        del shares["code_generation"]
        total = sum(shares.values())
        expected = {task: share / total for task, share in shares.items()}
        assert after.route(text)["probabilities"] == pytest.approx(expected, rel=1e-4)
        assert after.predict(text, task_hint="translation") == before.predict(text, task_hint="translation")
    known = after.system.model.memory
    assert set(known.routes.tolist()) == set(known.origins.tolist()) == {0, 1}
    assert not list(folder.glob("*/code_generation*"))


def test_a_renamed_task_answers_as_before(trained, tmp_path):
    folder = rename_task(trained, tmp_path / "model", "sentiment", "mood")
    before, after = DynamoInference(trained), DynamoInference(folder)
    assert after.task_names == ["mood", "code_generation", "translation"]
    for text in TEXTS:
        expected = before.predict(text, task_hint="sentiment")["sentiment"]
        assert after.predict(text, task_hint="mood") == {"mood": expected}
        assert list(after.route(text)["probabilities"].values()) == list(before.route(text)["probabilities"].values())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["add-task", "--name", "sentiment", "--type", "qa", "--data", "sample"], "has a task 'sentiment' already"),
        (["add-task", "--name", "x", "--type", "sentimen", "--data", "sample"], "did you mean 'sentiment'?"),
        (["add-task", "--name", "a/b", "--type", "qa", "--data", "sample"], "1 to 64 letters"),
        (["add-task", "--name", "x", "--type", "qa", "--data", "./nothing"], "no such file or folder"),
        (["remove-task", "--name", "sentimen"], "did you mean 'sentiment'?"),
        (["rename-task", "--name", "sentiment", "--to", "translation"], "there is a task 'translation' already"),
        (["rename-task", "--name", "sentiment", "--to", "a/b"], "1 to 64 letters"),
        (["remove-task", "--name", "sentiment", "--output", "full"], "full: is there already and not empty"),
        (
            ["add-task", "--name", "x", "--type", "sentiment", "--data", "sample", "--output", "full"],
            "full: is there already and not empty",
        ),
    ],
)
def test_what_cannot_be_done_is_one_sentence(trained, arguments, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    command, *options = arguments
    with pytest.raises(SystemExit) as stop:
        main([command, str(trained), *options])
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert sentence in error
    assert sorted(p.name for p in trained.parent.iterdir()) == [".lock", "final_model", "phase_1", "phase_2"]


def test_a_checkpoint_that_remembers_nothing_is_refused(trained, tmp_path):
    import shutil

    old = shutil.copytree(trained, tmp_path / "old")
    (old / MEMORY).unlink()
    write_manifest(old)
    config = extended_config(old / "config.yaml", AddedTask(NEW, "translation", "sample"), OVERRIDES)
    with pytest.raises(CheckpointError, match="nothing says what belongs to the tasks that are there"):
        add_task(old, tmp_path / "new", config)
    with pytest.raises(ConfigError, match=r"router\.branches: found 3 for 3 tasks"):
        load_config(trained / "config.yaml", ["router.branches=[0, 0, 0]"])


def _clusters(seed, *centers, count=60, features=24):
    generator = torch.Generator().manual_seed(seed)
    return [center + torch.randn(count, features, generator=generator) for center in centers]


def _inputs(seed=0, count=60):
    base = torch.Generator().manual_seed(9)
    centers = [3 * torch.randn(24, generator=base) for _ in range(3)]
    own, first, second = _clusters(seed, *centers, count=count)
    validation, *_ = _clusters(seed + 1, *centers)
    return BranchInputs(own, torch.empty(0, 24), torch.cat([first, second]), validation), (first, second)


def test_a_branch_learns_what_is_its_own(session_config):
    torch.manual_seed(0)
    inputs, _ = _inputs()
    phase = BranchPhase(_router(8), inputs, session_config.training)
    optimizer = torch.optim.AdamW(phase.groups)
    for step in range(60):
        optimizer.zero_grad()
        phase.backward(phase.draw(step), step, lambda loss: loss)
        optimizer.step()
    values = phase.validate()
    assert values["found"] > 0.95
    assert values["lost"] < 0.05
    assert len(inputs.known) + len(inputs.held_out) == len(inputs.remembered)
    assert torch.equal(inputs.held_out, inputs.remembered[::HELD_OUT])


def test_a_prototype_tells_a_task_from_sixteen_examples():
    """Fails if the row points at the mean of everything, or its bias is not between the groups."""
    torch.manual_seed(0)
    inputs, older = _inputs(count=16)
    ood = OutOfDistribution(24)
    features = torch.cat([inputs.remembered, *older])
    groups = torch.arange(len(features)) // 16 % 2
    ood.fit(features, groups, torch.ones(len(features), dtype=torch.bool), 0)
    router = _router(0)
    set_prototype(last_branch(router), inputs, ood)
    router.eval()
    last_branch(router).looks_like.fill_(1.0)  # says nothing
    assert (branch_odds(router, inputs.own_validation) > 0).float().mean() > 0.9
    assert (branch_odds(router, inputs.remembered) < 0).float().mean() > 0.9


def test_a_branch_is_made_cautious_enough():
    inputs, _ = _inputs()
    router = _router(4).eval()
    last = last_branch(router).mlp[-1]
    with torch.no_grad():
        last.bias += 100.0
    assert (branch_odds(router, inputs.held_out) > 0).all()
    limit_losses(router, inputs)
    assert (branch_odds(router, inputs.held_out) < 0).all()  # of 24 not even one may be lost
    bias = last.bias.clone()
    limit_losses(router, inputs)
    assert torch.equal(last.bias, bias)


def test_what_no_input_of_the_added_task_looks_like_is_not_taken_by_it():
    """Shares 0.9 and 0.1 of the tasks before, q 0.2 and 0.8: log(0.9 · 0.2 + 0.1 · 0.8) is added to the odds."""
    torch.manual_seed(0)
    router = _router(0).eval()
    branch, features = last_branch(router), torch.randn(3, 24)
    branch.looks_like.copy_(torch.tensor([0.2, 0.8]))
    with torch.no_grad():
        plain = branch.mlp(features)[:, 0]
        odds = branch(features, torch.tensor([[0.9, 0.1]] * 3))[:, 0]
    assert torch.allclose(odds, plain + torch.log(torch.tensor(0.26)))
    branch.learn_looks(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    assert torch.allclose(branch.looks_like, torch.tensor([0.751, 0.251]) / 1.002)


def test_a_branch_says_the_same_share_at_any_temperature():
    """An added task's share is sigmoid(d), the others keep their proportions. Fails if d is not scaled by T."""
    torch.manual_seed(1)
    router = Router(RouterConfig(hidden_sizes=[4], dropout=0.0, branches=[0], temperature=2.0), 24, 3).eval()
    features = torch.randn(6, 24)
    with torch.no_grad():
        weights = router(features).weights
        before = router.shares_before(features, 0)
        odds = last_branch(router)(features, before)[:, 0]
    assert torch.allclose(weights[:, 2], torch.sigmoid(odds), atol=1e-6)
    assert torch.allclose(weights[:, :2], before * (1 - weights[:, 2:]), atol=1e-6)


@pytest.mark.parametrize("gone", [2, 3])
def test_the_branch_that_stays_keeps_what_it_knows(gone):
    """Two added tasks, of which one is taken out: fails if the other one's row or looks are the wrong ones."""
    torch.manual_seed(2)
    router = Router(RouterConfig(hidden_sizes=[4], dropout=0.0, branches=[3, 3]), 24, 4)
    router.branches[0].looks_like.copy_(torch.tensor([0.3, 0.7]))
    router.branches[1].looks_like.copy_(torch.tensor([0.1, 0.4, 0.5]))
    left = router.without(gone)
    kept = router.branches[3 - gone]
    assert len(left.branches) == 1
    assert all(torch.equal(t, left.branches[0].mlp.state_dict()[n]) for n, t in kept.mlp.state_dict().items())
    expected = [0.2, 0.8] if gone == 2 else [0.3, 0.7]
    assert left.branches[0].looks_like.tolist() == pytest.approx(expected, abs=2e-3)


def _router(size):
    """Over two tasks, with a branch of a third."""
    return Router(RouterConfig(hidden_sizes=[4], dropout=0.0, branches=[size]), 24, 3)
