"""A newer version of the model, without a restart: no request fails, and each is answered by one version."""

import os
import shutil
import threading
import time

import httpx
import pytest
import torch
from clients import KEY, wait_until
from tiny import save_system

from dynamo_mtl.config.serving_config import ServingConfig
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.serving.app import make_app
from dynamo_mtl.serving.handlers import Server

SECONDS = float(os.environ.get("RELOAD_SECONDS", "6"))
TEXT = "A slow start but what an ending."
MIXED = [TEXT, {"text": "The man buys an apple.", "task_hint": "translation"},
         {"question": "Who sang?", "context": "Ada sang. Tom slept.", "task_hint": "qa"}]  # fmt: skip


@pytest.fixture
def versions(system, tmp_path, checkpoint):
    """Folders of two versions of the model, which answer differently."""
    second = tmp_path / "second"
    with torch.no_grad():
        for task in ("sentiment", "translation"):
            for parameter in system.model.head(task).parameters():
                parameter.neg_()
    save_system(system, second)
    return shutil.copytree(checkpoint, tmp_path / "first"), second


def put(folder, checkpoint):
    """Another version in the place of the checkpoint, at once."""
    beside = checkpoint.with_name("beside")
    shutil.copytree(folder, beside)
    checkpoint.rename(checkpoint.with_name("old"))
    beside.rename(checkpoint)
    shutil.rmtree(checkpoint.with_name("old"))


def test_five_reloads_under_traffic_fail_no_request(serve, versions, checkpoint):
    """One of the five is of a damaged folder, which leaves the model as it is."""
    _, client = serve(KEY, reload=True, max_requests=512)
    ask = {"inputs": TEXT, "task_hint": "sentiment"}
    scores = [client.post("/v1/predict", json=ask).json()["score"]]
    put(versions[1], checkpoint)
    assert client.post("/v1/reload", json={}).status_code == 200
    scores.append(client.post("/v1/predict", json=ask).json()["score"])
    assert abs(scores[0] - scores[1]) > 1e-4
    end, failures, answered = time.monotonic() + SECONDS, [], [0]

    def traffic(number):
        with httpx.Client(base_url=client.base_url, headers=client.headers, timeout=30) as own:
            while time.monotonic() < end:
                body = {"inputs": MIXED} if number % 2 else {"inputs": TEXT, "tasks": ["sentiment", "summarization"]}
                response = own.post("/v1/predict", json=body)
                answered[0] += 1
                if response.status_code != 200 or "error" in response.text:
                    failures.append(response.text)

    threads = [threading.Thread(target=traffic, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    statuses = []
    for turn in range(5):
        time.sleep(SECONDS / 8)
        put(versions[turn % 2], checkpoint)
        if turn == 2:
            weights = next(checkpoint.glob("adapters/*/*.safetensors"))
            weights.write_bytes(weights.read_bytes()[:-1])
        statuses.append(client.post("/v1/reload", json={}).status_code)
    for thread in threads:
        thread.join()
    assert statuses == [200, 200, 422, 200, 200]
    assert failures == []
    assert answered[0] > 10
    assert client.post("/v1/predict", json=ask).json()["score"] == pytest.approx(scores[0], abs=1e-6)


def test_what_was_accepted_is_answered_by_the_version_that_read_it(serve, versions, checkpoint, model, monkeypatch):
    server, client = serve(KEY, reload=True)
    step = Predictor.step
    monkeypatch.setattr(Predictor, "step", lambda self, decoder: (time.sleep(0.1), step(self, decoder))[1])
    long = {
        "inputs": {"text": "The man buys an apple.", "task_hint": "translation"},
        "parameters": {"max_new_tokens": 60},
    }
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "step", step)
        expected = model(long["inputs"], max_new_tokens=60)["translation_text"]
        other = DynamoInference(versions[1], device="cpu")(long["inputs"], max_new_tokens=60)["translation_text"]
    assert expected != other
    found = []
    thread = threading.Thread(target=lambda: found.append(client.post("/v1/predict", json=long).json()))
    thread.start()
    while not server.engine.in_flight:
        time.sleep(0.001)
    before = server.model
    put(versions[1], checkpoint)
    assert client.post("/v1/reload", json={}).status_code == 200
    assert server.engine.in_flight == 1
    thread.join()
    assert server.model is not before
    assert found[0]["translation_text"] == expected
    assert wait_until(lambda: server.engine.predictor is server.model.predictor)  # the old one can be freed


def test_a_broken_checkpoint_leaves_the_model(serve, checkpoint):
    server, client = serve(KEY, reload=True)
    before = server.model
    (checkpoint / "dynamo.json").write_text("{")
    response = client.post("/v1/reload", json={})
    assert (response.status_code, response.json()["error_type"]) == (422, "validation")
    assert "the model that was there goes on" in response.json()["error"]
    assert server.model is before
    assert client.post("/v1/predict", json={"inputs": TEXT}).status_code == 200


def test_it_needs_a_key_and_is_off_by_default(serve, model):
    _, client = serve(KEY)
    assert client.post("/v1/reload", json={}).status_code == 404
    with pytest.raises(ConfigError, match=r"serving\.reload: needs a key; set DYNAMO_API_KEY"):
        make_app(Server(model, ServingConfig(reload=True)))
    _, client = serve(KEY, reload=True)
    assert client.post("/v1/reload", content=b"a=1").status_code == 415
    assert httpx.post(client.base_url.join("/v1/reload"), json={}).status_code == 401
