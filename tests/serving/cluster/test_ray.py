"""Two replicas on a local Ray: ``make test-cluster``."""

import importlib
import shlex
import threading
import time
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve

from dynamo_mtl.errors import DynamoError
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.serving.ray import application
from dynamo_mtl.serving.security import KEY_VARIABLE

KEY = "a-key-of-sixteen-and-more"
INPUTS = [
    "A slow start but what an ending.",
    {"question": "Who sang?", "context": "Ada sang. Tom slept."},
    {"text": "The old bridge will close from Monday. Engineers found cracks.", "task_hint": "summarization"},
    {"text": "call the function save with path.", "task_hint": "code_generation"},
    {"text": "Two children are playing.", "task_hint": "translation"},
]


@pytest.fixture
def cluster():
    """A Ray of this machine, for one test."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    serve.shutdown()
    ray.shutdown()


def replicas():
    """How many replicas run."""
    return serve.status().applications["default"].deployments["Dynamo"].replica_states.get("RUNNING", 0)


def wait_for(count):
    """Wait for a number of replicas."""
    end = time.monotonic() + 60
    while replicas() != count and time.monotonic() < end:
        time.sleep(0.1)
    assert replicas() == count


def test_a_replica_stops_under_load_and_nothing_is_lost(checkpoint, cluster, monkeypatch):
    """Fails if an accepted request is lost while Ray stops a replica, an answer is another one than in one process, a
    replica stays without work, or the key does not reach the replicas."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)

    def deploy(count):
        arguments = {"checkpoint": str(checkpoint), "num_replicas": count, "num_cpus": 1, "serving.max_items": 8}
        serve.run(application(arguments))

    expected = DynamoInference(checkpoint, device="cpu")(INPUTS)
    deploy(2)
    wait_for(2)
    with httpx.Client(base_url="http://127.0.0.1:8000", headers={"Authorization": f"Bearer {KEY}"}) as client:
        assert httpx.get("http://127.0.0.1:8000/info").status_code == 401
        assert client.get("/info").json()["limits"]["max_items"] == 8
    stopping, failures, answered = threading.Event(), [], [0] * 8

    def ask(number):
        with httpx.Client(base_url="http://127.0.0.1:8000", headers={"Authorization": f"Bearer {KEY}"}) as own:
            while not stopping.is_set():
                place = (number + answered[number]) % len(INPUTS)
                said = own.post("/v1/predict", json={"inputs": INPUTS[place]}, timeout=60)
                if said.status_code != 200 or text_of(said.json()) != text_of(expected[place]):
                    failures.append((said.status_code, said.text))
                answered[number] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(answered))]
    for thread in threads:
        thread.start()
    try:
        time.sleep(3)
        worked = busy_replicas()
        deploy(1)
        wait_for(1)
        before = after = sum(answered)
        end = time.monotonic() + 60
        while after <= before and time.monotonic() < end:  # however slow the machine is
            time.sleep(0.1)
            after = sum(answered)
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert worked == 2
    assert after > before > 0


def busy_replicas():
    """How many replicas have answered something: as many as different counts are read, since each has its own."""
    counts = set()
    for _ in range(40):
        said = httpx.get("http://127.0.0.1:8000/metrics", headers={"Authorization": f"Bearer {KEY}"}, timeout=60).text
        created = [line.split()[-1] for line in said.splitlines() if line.startswith("dynamo_answers_created")]
        total = sum(float(line.split()[-1]) for line in said.splitlines() if line.startswith("dynamo_answers_total"))
        if total:
            counts.add(created[0])
    return len(counts)


def text_of(answer):
    """What does not depend on which inputs share a pass, to the last digit."""
    return {name: value for name, value in answer.items() if name in TEXTS}


TEXTS = ("task", "label", "answer", "start", "end", "summary_text", "generated_text", "translation_text")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, f"set {KEY_VARIABLE}, or give insecure=true"),
        ({"num_replica": 2}, "arguments: num_replica: no such argument; did you mean 'num_replicas'?"),
        ({"num_replicas": "some"}, "num_replicas"),
        ({"insecure": "true", "serving.max_item": 1}, "unknown key 'serving.max_item'; did you mean 'max_items'?"),
        ({"insecure": "true", "checkpoint": "/nowhere"}, "/nowhere"),
    ],
)
def test_what_cannot_be_deployed_is_said(checkpoint, monkeypatch, arguments, says):
    """Fails if a deployment without a key is made without a word, or a mistake shows only on a replica."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(DynamoError) as caught:
        application({"checkpoint": str(checkpoint), **arguments})
    assert says in str(caught.value)


def test_the_documented_command_deploys(checkpoint, monkeypatch):
    """Fails if docs/serving.md names a module or an argument that is not there."""
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
    command = next(shlex.split(line) for line in page.splitlines() if line.startswith("serve run "))
    module, name = command[2].split(":")
    arguments = dict(word.split("=", 1) for word in command[3:])
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    deployed = getattr(importlib.import_module(module), name)({**arguments, "checkpoint": str(checkpoint)})
    assert deployed._bound_deployment.num_replicas == int(arguments["num_replicas"]) == 2
