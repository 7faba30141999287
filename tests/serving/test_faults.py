"""A server among real clients and proxies: upgrades, silence, load, sub-paths, other sites."""

import json
import socket
import threading
import time

import httpx
import pytest
import torch
from clients import together, wait_until

from dynamo_mtl.config.serving_config import ServingConfig
from dynamo_mtl.serving.engine import Engine

BODY = {"inputs": {"text": "good", "task_hint": "sentiment"}}


def _raw(client, data, seconds=5.0):
    """What a connection gives for some bytes, until it is closed or nothing comes for a while."""
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.settimeout(seconds)
        connection.sendall(data)
        found = b""
        try:
            while part := connection.recv(65536):
                found += part
        except TimeoutError:
            return found, False
        return found, True


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.0"])
def test_a_client_that_offers_an_upgrade_keeps_its_body(serve, upgrade):
    _, client = serve()
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": upgrade, "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    answered = client.post("/v1/predict", json=BODY, headers=headers)
    assert (answered.status_code, answered.json()["task"]) == (200, "sentiment")


@pytest.mark.parametrize(
    "data", [b"", b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-"], ids=["silent", "half a head"]
)
def test_a_silent_connection_is_closed(serve, data):
    _, client = serve(header_seconds=0.3)
    began = time.monotonic()
    _, closed = _raw(client, data)
    assert closed
    assert time.monotonic() - began < 4


def test_a_second_half_of_a_head_is_waited_for_no_longer_than_the_first(serve):
    """After an answer on the same connection. Fails where only idle connections are watched."""
    _, client = serve(header_seconds=0.3)
    _, closed = _raw(client, b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\nGET /health/li")
    assert closed


def test_a_slow_head_that_comes_in_time_is_answered(serve):
    _, client = serve(header_seconds=3.0)
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        for part in (b"GET /health/live HTTP/1.1\r\n", b"Host: a\r\n", b"\r\n"):
            connection.sendall(part)
            time.sleep(0.1)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_readiness_does_not_wait_behind_work(serve):
    """Passes that end are proof. Under 32 connections, 99 of 100 answers come within 200 ms (seen: a few)."""
    server, client = serve()
    stop = threading.Event()

    def load():
        with httpx.Client(base_url=client.base_url, timeout=30) as own:
            while not stop.is_set():
                own.post("/v1/predict", json={"inputs": [{"text": "good " * 50, "task_hint": "sentiment"}] * 4})

    workers = [threading.Thread(target=load, daemon=True) for _ in range(32)]
    for worker in workers:
        worker.start()
    try:
        assert wait_until(lambda: server.engine.in_flight > 4)
        answers = [client.get("/health/ready") for _ in range(20)]
        assert {answer.status_code for answer in answers} == {200}
    finally:
        stop.set()
        for worker in workers:
            worker.join(30)


def test_readiness_does_not_wait_for_a_pass_that_hangs(serve, monkeypatch):
    """It answers at once, and says so only when no pass has ended for the whole deadline."""
    server, client = serve(deadline_seconds=0.5)
    hang = threading.Event()
    real = server.model.predictor.begin
    monkeypatch.setattr(server.model.predictor, "begin", lambda *a: (hang.wait(10), real(*a))[1])
    asked = threading.Thread(target=lambda: client.post("/v1/predict", json=BODY), daemon=True)
    asked.start()
    try:
        assert wait_until(lambda: server.engine.in_flight == 1)
        assert httpx.get(f"{client.base_url}/health/ready", timeout=2).status_code == 200
        assert wait_until(lambda: httpx.get(f"{client.base_url}/health/ready", timeout=2).status_code == 503, 5)
    finally:
        hang.set()
        asked.join(10)


def test_the_engine_has_its_own_threads(model):
    """Whoever comes first sets one thread for itself. Fails where the engine's thread begins with that."""
    before = torch.get_num_threads()
    seen = []
    try:
        torch.set_num_threads(2)
        engine = Engine(model.predictor, ServingConfig(), lambda *_: seen.append(torch.get_num_threads()))
        together(lambda: torch.set_num_threads(1))
        engine.start()
        question = model.reader.question("good", "sentiment", None, {})
        engine.submit([question])[0].future.result(20)
        engine.stop(5)
    finally:
        torch.set_num_threads(before)
    assert seen == [2]


def test_a_callers_request_id_is_kept_if_it_can_be_one(serve):
    _, client = serve()
    assert client.get("/health/live", headers={"X-Request-ID": "shop-17:4"}).headers["x-request-id"] == "shop-17:4"
    for odd in ("a b", "x" * 200, "<script>"):
        assert client.get("/health/live", headers={"X-Request-ID": odd}).headers["x-request-id"] != odd


def test_pages_of_other_sites_may_ask_where_that_is_set(serve):
    _, client = serve(key="a-key-of-sixteen-and-more", cors_origins=["https://shop.example"])
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
    preflight = client.options("/v1/predict", headers={**asked, "Authorization": ""})
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, "https://shop.example")
    answered = client.post("/v1/predict", json=BODY, headers={"Origin": "https://shop.example"})
    assert answered.headers["access-control-allow-origin"] == "https://shop.example"
    other = client.post("/v1/predict", json=BODY, headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers
    _, closed = serve()
    assert "access-control-allow-origin" not in closed.get("/health/live", headers={"Origin": "https://a.b"}).headers


def test_health_answers_head_and_pages_name_no_root(serve):
    """Behind a proxy with a path of its own, a page's links must stay below it."""
    _, client = serve()
    for route in ("/health/live", "/health/ready"):
        assert client.head(route).status_code == 200
    for page in ("/", "/docs", "/playground.js"):
        text = client.get(page).text
        assert 'href="/' not in text
        assert 'src="/' not in text
        assert '"/v1' not in text


def test_inputs_that_were_given_up_are_counted_each(serve, monkeypatch):
    server, client = serve()
    real = server.model.predictor.begin
    monkeypatch.setattr(server.model.predictor, "begin", lambda *a: (time.sleep(0.5), real(*a))[1])
    body = json.dumps({"inputs": [BODY["inputs"]] * 5})
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{client.base_url}/v1/predict", content=body, headers={"Content-Type": "application/json"}, timeout=0.2
        )
    assert wait_until(lambda: "dynamo_abandoned_inputs_total 5.0" in server.metrics.text().decode())


def test_a_question_without_a_passage_is_422_by_itself(serve):
    _, client = serve()
    inputs = [{"text": "good", "task_hint": "sentiment"}, {"question": "Who sang?", "task_hint": "qa"}]
    answered = client.post("/v1/predict", json={"inputs": inputs[1]})
    assert (answered.status_code, answered.json()["error_type"]) == (422, "validation")
    assert "there is none; give it as context" in answered.json()["error"]


def test_examples_come_with_the_checkpoint(serve, model):
    _, client = serve()
    tasks = {task["name"]: task for task in client.get("/v1/tasks").json()}
    assert tasks["sentiment"]["examples"] == []
    assert tasks["sentiment"]["description"] == "sentiment: negative, positive"
    settings = model.system.config.tasks
    settings["sentiment"] = settings["sentiment"].model_copy(update={"examples": ["What a day!"]})
    tasks = {task["name"]: task for task in client.get("/v1/tasks").json()}
    assert tasks["sentiment"]["examples"] == ["What a day!"]
