"""Training by several processes is training by one: same examples, same losses, same parameters."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from jobs import run_job
from tiny import without_dropout
from torture import RATES, outcome

from dynamo_mtl.config import load_config
from dynamo_mtl.distributed import Rank, all_reduce_sum, join_shares, on_main_process, world
from dynamo_mtl.errors import ConfigError, DynamoError
from dynamo_mtl.evaluation.benchmark import evaluate_checkpoint
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.storage import verify_folder
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.training import loop
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.phases import phase_1_adapters
from dynamo_mtl.training.phases.phase_1_adapters import AdapterPhase
from dynamo_mtl.training.phases.phase_3_joint import JointPhase
from dynamo_mtl.training.run import train
from dynamo_mtl.training.stop_signals import Stopped


def quiet(settings):
    """Settings without dropout, so that equality over numbers of processes is promised."""
    found = without_dropout(settings, ("sentiment", "qa", "translation"))
    training = {**settings["training"], "max_steps": 3, "log_every": 1, "eval_examples": 3}
    training["router"] = {"examples_per_task": 8, "feature_epochs": 1, "feature_batch_size": 8, "mixture_steps": 2}
    return {**found, "data": {**found["data"], "crossed_rate": 0.5}, "training": training}


def _train(folder, phases=(1, 2, 3)):
    train(load_config(folder / "config.yaml"), phases)


def _prepare(folder, settings):
    folder.mkdir(exist_ok=True)
    places = {"log_dir": str(folder / "logs"), "checkpoint_dir": str(folder / "checkpoints")}
    (folder / "config.yaml").write_text(dump_yaml({**settings, **places}))
    return folder


def _lines(folder):
    return [json.loads(line) for line in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tiny_settings, tmp_path_factory):
    folder = _prepare(tmp_path_factory.mktemp("jobs") / "one", quiet(tiny_settings))
    _train(folder)
    return _lines(folder)


@pytest.mark.promise("T5")
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_shares_of_a_step_are_the_examples_of_one_process(session_config, system, tables, count):
    """Fails if a process draws from random numbers of its own, or if a share is left out or drawn twice."""
    whole, parts = ExampleSource(system, tables, Rank()), []
    for rank in range(count):
        parts.append(ExampleSource(system, tables, Rank(rank, count)))
    settings = session_config.training
    ranked = {name: list(range(20)) for name in tables}
    for make in (lambda s: AdapterPhase(s, "qa", settings), lambda s: JointPhase(s, settings, {}, ranked)):
        phases, complete = [make(part) for part in parts], make(whole)
        for step in (0, 1, complete.steps - 1):
            drawn = complete.draw(step)
            found = {}
            for phase in phases:
                share = phase.draw(step)
                assert share.routes.tolist() == drawn.routes.tolist()
                assert share.twins.tolist() == drawn.twins.tolist()
                found.update(zip(share.numbers.tolist(), share.examples, strict=True))
            assert found == dict(enumerate(drawn.examples))
            assert phases[-1].members(step) == complete.members(step)


@pytest.mark.promise("T5")
@pytest.mark.parametrize("count", [2, 4])
def test_losses_do_not_depend_on_the_number_of_processes(tiny_settings, tmp_path, alone, count):
    """Fails without adding up the counts of labels, the features, the gradients or the terms."""
    folder = _prepare(tmp_path / "many", quiet(tiny_settings))
    run_job(count, _train, folder)
    found = _lines(folder)
    assert len(found) == len(alone)
    for ours, theirs in zip(alone, found, strict=True):
        assert {k: v for k, v in ours.items() if k not in RATES} == pytest.approx(
            {k: v for k, v in theirs.items() if k not in RATES}, abs=1e-5
        )


LEAVES = """
import sys
from pathlib import Path
from dynamo_mtl.cli import main

try:
    main(["train", sys.argv[1]])
finally:
    print(*[name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")], sep="\\n")
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are told by Linux's /proc")
def test_no_thread_of_a_job_is_left_when_it_ends(tiny_settings, tmp_path):
    """Threads that run while the interpreter ends abort it now and then: exit code -6 after a good run."""
    folder = _prepare(tmp_path, quiet(tiny_settings))
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    job = subprocess.run(
        [sys.executable, "-c", LEAVES, str(folder / "config.yaml")],
        env={**os.environ, **place}, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    threads = job.stdout.splitlines()
    assert not [name for name in threads if "gloo" in name or "tcpstore" in name]


def _skip_one(folder):
    """Train phase 1 with a gradient that is infinite in the last process only; returns what each step changed."""
    real, seen = phase_1_adapters.task_backward, []

    def backward(system, batch, adapter, scale):
        seen.append(_digest(system))
        terms = real(system, batch, adapter, scale)
        if len(seen) == 2 and world().number == world().size - 1:
            next(p for p in system.model.parameters() if p.grad is not None).grad.view(-1)[0] = math.inf
        return terms

    phase_1_adapters.task_backward = backward
    train(load_config(folder / "config.yaml", ["training.on_nonfinite=skip"]), (1,))
    return seen


def _digest(system):
    tensors = [p.detach() for part in (system.model.bank, system.model.heads) for p in part.parameters()]
    return hashlib.sha256(torch.cat([t.float().flatten() for t in tensors]).numpy().tobytes()).hexdigest()


@pytest.mark.promise("T7")
def test_a_bad_gradient_in_one_process_is_skipped_by_all(tiny_settings, tmp_path):
    """Fails if the norm is taken before the gradients are added up: only one process would skip."""
    folder = _prepare(tmp_path / "job", quiet(tiny_settings))
    first, second = run_job(2, _skip_one, folder)
    assert first == second  # the processes never part
    assert first[1] == first[2]
    assert first[0] != first[1]
    assert [line["skipped"] for line in _lines(folder) if "skipped" in line] != []


def _stopped_by_one(folder):
    real = loop.TrainingLoop.update

    def update(self, batch):
        if self.phase.name == "phase 1 qa" and self.step == 1 and world().number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, batch)

    loop.TrainingLoop.update = update
    try:
        _train(folder)
    except Stopped as stopped:
        return stopped.code
    return None


@pytest.mark.promise("T3")
def test_a_signal_to_one_process_stops_all(tiny_settings, tmp_path):
    """Fails without agreeing on the wish to stop: the other process would wait for ever."""
    folder = _prepare(tmp_path / "job", quiet(tiny_settings))
    assert run_job(2, _stopped_by_one, folder) == [143, 143]
    verify_folder(folder / "checkpoints" / "resume" / "state-001-00000002")


KILLED = """
import os, signal, sys
from dynamo_mtl.cli import main
from dynamo_mtl.training import loop

real = loop.TrainingLoop.update

def update(self, batch):
    if self.phase.name == "phase 3 joint" and self.step == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, batch)

loop.TrainingLoop.update = update
main(["train", sys.argv[1]])
"""


def _resume(folder):
    train(load_config(folder / "config.yaml"), (1, 2, 3), resume="latest")


@pytest.mark.promise("T2")
def test_a_killed_process_ends_the_job_and_leaves_a_state(tiny_settings, tmp_path):
    """Under torchrun, with dropout: fails without the random state of every process in the saved state."""
    settings = quiet(tiny_settings)
    settings["lora_configs"] = {n: {**c, "dropout": 0.2} for n, c in settings["lora_configs"].items()}
    settings["training"] = {**settings["training"], "save_every": 1, "max_steps": 2}
    straight = _prepare(tmp_path / "straight", settings)
    run_job(2, _train, straight)
    folder = _prepare(tmp_path / "killed", settings)
    (tmp_path / "worker.py").write_text(KILLED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    job = subprocess.run(
        [*launcher, str(tmp_path / "worker.py"), str(folder / "config.yaml")],
        check=False, capture_output=True, text=True, timeout=180, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert job.returncode != 0
    assert "error: a process of this job ended or cannot be reached" in job.stderr
    states = sorted((folder / "checkpoints" / "resume").glob("state-*"))
    assert [s.name for s in states] == ["state-005-00000001", "state-005-00000002"]
    for state in states:
        verify_folder(state)
    run_job(2, _resume, folder)
    assert outcome(folder) == outcome(straight)  # parameters, and the loss of every step


def test_a_state_of_one_process_goes_on_in_two(tiny_settings, tmp_path, alone):
    """At dropout 0 the number of processes may change in the middle of a run."""
    folder = _prepare(tmp_path / "job", quiet(tiny_settings))
    real = loop.TrainingLoop.update

    def update(self, batch):
        if self.phase.name == "phase 2 mixture" and self.step == 1:
            raise KeyboardInterrupt
        real(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "update", update)
        with pytest.raises(KeyboardInterrupt):
            _train(folder)
    run_job(2, _resume, folder)
    found = _lines(folder)
    assert len(found) == len(alone)
    assert found[-1] == pytest.approx(alone[-1], abs=1e-5)


def _evaluate(folder):
    counted = []
    real = Predictor.predict

    def predict(self, inputs, tasks=None, weights=None):
        counted.extend(i.text for i in inputs)
        return real(self, inputs, tasks, weights)

    Predictor.predict = predict
    config = load_config(folder / "config.yaml")
    try:
        result = evaluate_checkpoint(folder / "checkpoints" / "phase_1", config, "validation", ["single_task"])
    finally:
        Predictor.predict = real
    return result.systems, result.routing["instructed"], sorted(counted)


def test_evaluation_answers_every_example_exactly_once(tiny_settings, tmp_path):
    """Fails if a share is scored alone, or if shares overlap as padded ones do."""
    settings = quiet(tiny_settings)
    settings["tasks"]["qa"] = {**settings["tasks"]["qa"], "validation_examples": 7}
    folder = _prepare(tmp_path / "job", settings)
    _train(folder, (1,))
    scores, routing, texts = _evaluate(folder)
    parts = run_job(3, _evaluate, folder)
    for found, found_routing, _ in parts:
        assert found.keys() == scores.keys()
        assert all(
            found["single_task"][task] == pytest.approx(values) for task, values in scores["single_task"].items()
        )
        assert found_routing == pytest.approx(routing, abs=1e-5)
    assert sorted(text for _, _, counted in parts for text in counted) == texts


def _exchange():
    """Every exchange with hand-made values."""
    PartialState()
    rank = world().number

    def fail():
        raise ConfigError("from the first")

    try:
        on_main_process(fail)
    except DynamoError as error:
        failure = (type(error).__name__, str(error), error.is_reported)
    return {
        "sum": all_reduce_sum(torch.tensor([1.0, rank])).tolist(),
        "joined": join_shares([f"item {i}" for i in world().share(range(5))]),
        "none": join_shares([]),
        "first": on_main_process(lambda: rank + 7),
        "failure": failure,
    }


def test_exchanges_give_all_processes_the_same():
    found = run_job(3, _exchange)
    for rank, values in enumerate(found):
        assert values == {
            "sum": [3.0, 3.0],
            "joined": [f"item {i}" for i in range(5)],
            "none": [],
            "first": 7,
            "failure": ("ConfigError", "from the first", rank > 0),
        }
