"""The three phases on a tiny RoBERTa: who may change, who may not, and that the result reads back."""

import itertools
import json
import shutil

import pytest
import torch

from dynamo_mtl.config import load_config
from dynamo_mtl.errors import CheckpointError
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.system import load_system
from dynamo_mtl.training import run as pipeline
from dynamo_mtl.training.run import train

TERMS = ("smoothing", "load_balance", "efficiency", "consistency", "entropy", "temperature", "z_loss")
INPUTS = [TextInput("A wonderful film."), TextInput("Who reads?", "The man reads a book."), TextInput("Define f.")]


def _states(folder):
    system, metadata = load_system(folder, torch.device("cpu"))
    return {name: tensor.clone() for name, tensor in system.model.state_dict().items()}, metadata


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_settings, tiny_roberta):
    """All three phases, watched: the backbone's bits after each."""
    folder = tmp_path_factory.mktemp("trained")
    every_term = {f"{term}_weight": 0.1 for term in TERMS}
    settings = {
        **tiny_settings,
        "training": {**tiny_settings["training"], **every_term},
        "log_dir": str(folder / "logs"),
        "checkpoint_dir": str(folder / "checkpoints"),
    }
    (folder / "config.yaml").write_text(dump_yaml(settings))
    backbones, predictions = [], []
    real = pipeline.run_phase

    def watched(phase, system, *rest, **named):
        before = {n: t.clone() for n, t in system.model.encoder.state_dict().items()}
        real(phase, system, *rest, **named)
        backbones.append((before, system.model.encoder.state_dict()))
        if phase.name == "phase 3 joint":
            predictions.extend(Predictor(system).predict(INPUTS))

    pipeline.run_phase = watched
    try:
        last = train(load_config(folder / "config.yaml"), (1, 2, 3))
    finally:
        pipeline.run_phase = real
    assert last == folder / "checkpoints" / "final_model"
    return folder, backbones, predictions


def test_the_backbone_is_bit_identical_after_every_phase(trained):
    _, backbones, _ = trained
    assert len(backbones) == 8
    for before, after in backbones:
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_each_phase_changes_only_what_it_may(trained):
    folder, *_ = trained
    one, two, three = (_states(folder / "checkpoints" / name)[0] for name in ("phase_1", "phase_2", "final_model"))
    changed = {n for n in one if not torch.equal(one[n], two[n])}
    assert any(name.startswith("ood.") for name in changed)
    assert all(name.startswith(("router.", "ood.")) for name in changed)
    changed = {n.split(".")[0] for n in two if not torch.equal(two[n], three[n])}
    assert changed <= {"bank", "heads", "router", "ood"}


def _run(phase, system, config, folder):
    """Let a phase run to its end, under validations that get better each time, so that it ends in its last state."""
    from accelerate import Accelerator

    from dynamo_mtl.training.loop import run_phase
    from dynamo_mtl.training.metrics_log import MetricsLog

    scores = itertools.count()
    phase.validate = lambda: {"score": float(next(scores))}
    before = {n: t.clone() for n, t in system.model.state_dict().items()}
    log = MetricsLog(folder, Accelerator())
    run_phase(phase, system, config, 0, Accelerator(), log)
    log.close()
    return {n.split(".")[0] for n, t in system.model.state_dict().items() if not torch.equal(before[n], t)}


def test_later_phases_train_what_they_should(system, session_config, tables, tmp_path):
    """Fails if a phase leaves alone what it is for: a router in phase 2, everything but the backbone in phase 3."""
    from dynamo_mtl.training.examples import ExampleSource
    from dynamo_mtl.training.phases.phase_2_router import FeaturePhase, MixturePhase, validation_features
    from dynamo_mtl.training.phases.phase_3_joint import JointPhase

    source, config = ExampleSource(system, tables), session_config.training
    held_out = validation_features(source, config)
    assert _run(FeaturePhase(source, config, held_out), system, config, tmp_path) == {"router"}
    assert _run(MixturePhase(source, config, held_out), system, config, tmp_path) == {"router"}
    assert _run(JointPhase(source, config, held_out, None), system, config, tmp_path) == {"router", "bank", "heads"}


def test_phase_3_of_no_steps_ends_in_the_model_of_phase_2(trained, tmp_path, tiny_config_file):
    """The default. Fails if anything but the calibration is made anew, or no model is written."""
    folder, *_ = trained
    shutil.copytree(folder / "checkpoints" / "phase_2", tmp_path / "checkpoints" / "phase_2")
    config = load_config(tiny_config_file, ["training.joint.max_steps=0"])
    final = train(config, (3,))
    assert final.name == "final_model"
    same = [p.relative_to(final) for p in final.rglob("*.safetensors")]
    assert len(same) > 10
    assert all((final / p).read_bytes() == (final.parent / "phase_2" / p).read_bytes() for p in same)
    assert not (final.parent / "resume").exists()


def test_a_phase_whose_replacement_was_killed_is_found_again(trained, tmp_path, tiny_config_file):
    """Between taking the old folder's name away and giving it to the new one: fails if it is looked for too early."""
    folder, *_ = trained
    shutil.copytree(folder / "checkpoints" / "phase_2", tmp_path / "checkpoints" / ".phase_2.0123abcd.old")
    assert train(load_config(tiny_config_file, ["training.joint.max_steps=0"]), (3,)).is_dir()


def test_phase_1_of_one_task_leaves_all_others_alone(system, session_config, tables, tmp_path):
    from accelerate import Accelerator

    from dynamo_mtl.training.examples import ExampleSource
    from dynamo_mtl.training.loop import run_phase
    from dynamo_mtl.training.metrics_log import MetricsLog
    from dynamo_mtl.training.phases.phase_1_adapters import AdapterPhase

    before = {n: t.clone() for n, t in system.model.state_dict().items()}
    log = MetricsLog(tmp_path, Accelerator())
    phase = AdapterPhase(ExampleSource(system, tables), "qa", session_config.training)
    run_phase(phase, system, session_config.training, 0, Accelerator(), log)
    log.close()
    index = system.route_of("qa")
    changed = {n for n, t in system.model.state_dict().items() if not torch.equal(before[n], t)}
    assert changed
    assert all(n.startswith((f"bank.adapters.{index}.", f"heads.{index}.")) for n in changed), changed
    assert not any(p.requires_grad for p in system.model.parameters())


def test_the_log_names_every_term(trained):
    folder, *_ = trained
    lines = [json.loads(line) for line in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]
    phases = [line["phase"] for line in lines]
    assert list(dict.fromkeys(phases)) == [
        "phase 1 sentiment", "phase 1 qa", "phase 1 summarization", "phase 1 code_generation", "phase 1 translation",
        "phase 2 router", "phase 2 mixture", "phase 3 joint",
    ]  # fmt: skip
    joint = next(line for line in lines if line["phase"] == "phase 3 joint" and "task" in line)
    assert {"task", "routing", "loss", *TERMS} <= joint.keys()
    assert {"grad_norm", "steps_per_second"} <= joint.keys()


def test_a_reloaded_model_predicts_what_the_trained_one_did(trained):
    folder, _, predictions = trained
    reloaded = Predictor(load_system(folder / "checkpoints" / "final_model", torch.device("cpu"))[0])
    assert reloaded.predict(INPUTS) == predictions


def test_a_later_phase_needs_the_earlier_one(trained, tmp_path, tiny_config_file):
    config = load_config(tiny_config_file)
    with pytest.raises(CheckpointError, match=r"phase 2 starts from phase 1, which has not been trained.*--phase 1"):
        train(config, (2,))
    folder, *_ = trained
    shutil.copytree(folder / "checkpoints" / "phase_1", tmp_path / "checkpoints" / "phase_1")
    # Phase 1 trains no router, so phase 2 may start one of another shape.
    other = load_config(tiny_config_file, ["router.hidden_sizes=[7]"])
    assert train(other, (2,)) == tmp_path / "checkpoints" / "phase_2"
    metadata = load_system(tmp_path / "checkpoints" / "phase_2", torch.device("cpu"))[1]
    assert metadata.train_seconds > 0
    assert metadata.dataset_sizes["qa"] == 60


def test_the_same_seed_gives_the_same_parameters_with_and_without_workers(tiny_config_file, tmp_path):
    states = []
    for run, workers in (("a", 0), ("b", 1)):
        overrides = [f"checkpoint_dir={tmp_path / run}", "training.max_steps=2", f"data.num_workers={workers}"]
        states.append(_states(train(load_config(tiny_config_file, overrides), (1,)))[0])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_wandb_offline_writes_a_run(tiny_config_file, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    overrides = ["use_wandb=true", "wandb_project=test", "wandb_tags=[a, b]", "training.max_steps=2"]
    train(load_config(tiny_config_file, overrides), (1,))
    assert list((tmp_path / "logs" / "wandb").glob("offline-run-*"))


def test_debug_logging_shows_routing_weights_and_batches(tiny_config_file, tmp_path, trained, caplog):
    folder, *_ = trained
    shutil.copytree(folder / "checkpoints" / "phase_2", tmp_path / "checkpoints" / "phase_2")
    with caplog.at_level("DEBUG", logger="dynamo_mtl"):
        train(load_config(tiny_config_file), (3,))
    assert "routing weights: mean {'sentiment':" in caplog.text
    assert "micro-batches" in caplog.text


@pytest.mark.parametrize("best", [True, False])
def test_a_phase_ends_in_its_best_or_its_last_state(system, session_config, tables, tmp_path, best):
    """Validation gets worse from the start on. Fails if either state is restored where the other is asked for."""
    from accelerate import Accelerator

    from dynamo_mtl.training.examples import ExampleSource
    from dynamo_mtl.training.loop import run_phase
    from dynamo_mtl.training.metrics_log import MetricsLog
    from dynamo_mtl.training.phases.phase_1_adapters import AdapterPhase

    changes = {"load_best_model_at_end": best, "max_steps": 3, "eval_every": 1}
    config = session_config.training.model_copy(update=changes)
    before = {n: t.clone() for n, t in system.model.bank.state_dict().items()}
    phase = AdapterPhase(ExampleSource(system, tables), "sentiment", config)
    scores = iter([-1.0, -2.0, -3.0, -4.0])
    phase.validate = lambda: {"score": next(scores)}
    log = MetricsLog(tmp_path, Accelerator())
    score = run_phase(phase, system, config, 0, Accelerator(), log)
    log.close()
    unchanged = all(torch.equal(before[n], t) for n, t in system.model.bank.state_dict().items())
    assert (score, unchanged) == ((-1.0, True) if best else (-4.0, False))


def test_training_stops_when_validation_no_longer_improves():
    from dynamo_mtl.training.best_state import BestState
    from dynamo_mtl.training.phases.phase import SCORE

    parameter = torch.nn.Parameter(torch.zeros(2))
    best = BestState([parameter], patience=2)
    for step, (value, score) in enumerate([(1.0, 0.1), (2.0, 0.5), (3.0, 0.4), (4.0, 0.3)]):
        with torch.no_grad():
            parameter.fill_(value)
        assert not best.exhausted
        best.update({SCORE: score}, step)
    assert best.exhausted
    best.restore()
    assert parameter.tolist() == [2.0, 2.0]


@pytest.mark.filterwarnings("ignore")  # the tracer warns of itself
def test_compiled_layers_learn_the_same(tiny_settings, tmp_path, monkeypatch):
    compiled = []
    real = torch.nn.Module.compile

    def without_code_generation(module, *args, **kwargs):
        compiled.append(type(module).__name__)
        real(module, *args, **kwargs, backend="aot_eager")  # traced and differentiated as always; no C++ compiler

    monkeypatch.setattr(torch.nn.Module, "compile", without_code_generation)
    settings = {**tiny_settings, "tasks": {"sentiment": tiny_settings["tasks"]["sentiment"]}}
    settings["lora_configs"] = {"sentiment": {"rank": 4, "dropout": 0.0}}
    settings["data"] = {"sentiment_data_path": "sample", "cache_dir": tiny_settings["data"]["cache_dir"]}
    (tmp_path / "config.yaml").write_text(dump_yaml({**settings, "log_dir": str(tmp_path)}))
    states = []
    for choice in ("false", "true"):
        overrides = [f"training.compile={choice}", "training.max_steps=2", f"checkpoint_dir={tmp_path / choice}"]
        states.append(_states(train(load_config(tmp_path / "config.yaml", overrides), (1,)))[0])
    assert compiled == ["EncoderLayer"] * 4
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=1e-5, rtol=1e-4)
