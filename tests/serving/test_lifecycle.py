"""The process: how it starts, whom it lets in, and how it ends."""

import ctypes
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from clients import KEY, together, wait_until
from tiny import save_system
from typer.testing import CliRunner

from dynamo_mtl.cli import app
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.serving.security import check_exposure

SLOW = """
import sys, time
from dynamo_mtl.inference.predictor import Predictor
step = Predictor.step
Predictor.step = lambda self, decoder: (time.sleep(0.05), step(self, decoder))[1]
from dynamo_mtl.cli import main
main()
"""
BROKEN = """
import sys
from dynamo_mtl.serving.engine import Engine
Engine._begin = lambda self, jobs: 1 / 0
from dynamo_mtl.cli import main
main()
"""
WRITE = {"inputs": {"text": "The man buys an apple.", "task_hint": "translation"}}


@contextmanager
def _running(program, checkpoint, *overrides):
    """A server as a process of its own, once it is ready; gives it and its address."""
    arguments = ["serve", str(checkpoint), "serving.port=0", "serving.num_threads=1", "--device", "cpu", *overrides]
    environment = {**os.environ, "DYNAMO_API_KEY": ""}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE, text=True, env=environment
    )
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"on (http://\S+)", line):
                break
        reader.start()
        yield process, found[1], lines
    finally:
        process.kill()
        process.wait()
        reader.join(5)
        process.stderr.close()


def test_a_hangup_loads_the_newest_version(checkpoint, system):
    """Fails if the signal ends the server, or a damaged version takes over."""
    with _running("from dynamo_mtl.cli import main; main()", checkpoint) as (process, address, lines):
        ask = {"inputs": "A film.", "task_hint": "sentiment"}

        def score():
            return httpx.post(f"{address}/v1/predict", json=ask, timeout=30).json()["score"]

        first = score()
        with torch.no_grad():
            system.model.head("sentiment").out.weight.mul_(3.0)
        shutil.rmtree(checkpoint)
        save_system(system, checkpoint)
        process.send_signal(signal.SIGHUP)
        assert wait_until(lambda: abs(score() - first) > 1e-6, 30)
        second = score()
        (checkpoint / "dynamo.json").write_text("{")
        process.send_signal(signal.SIGHUP)
        assert wait_until(lambda: any("could not be loaded anew" in line for line in lines), 30)
        assert score() == second


def test_a_signal_that_another_thread_gets_stops_an_idle_server(checkpoint):
    """Fails if a handler is to run in the main thread, which waits for an input and does not wake up."""
    with _running("from dynamo_mtl.cli import main; main()", checkpoint) as (process, address, _):
        assert httpx.get(f"{address}/health/ready", timeout=30).status_code == 200
        time.sleep(0.2)
        others = [int(path.name) for path in Path(f"/proc/{process.pid}/task").iterdir()]
        other = max(number for number in others if number != process.pid)
        tgkill = 234 if platform.machine() == "x86_64" else 131
        assert ctypes.CDLL(None, use_errno=True).syscall(tgkill, process.pid, other, signal.SIGTERM) == 0
        assert process.wait(10) == 0


def test_told_to_stop_it_finishes_what_it_accepted_and_refuses_the_rest(checkpoint):
    with _running(SLOW, checkpoint) as (process, address, lines), httpx.Client(base_url=address, timeout=30) as client:
        assert client.get("/health/ready").status_code == 200
        accepted, results = threading.Event(), []

        def load():
            long = {**WRITE, "parameters": {"max_new_tokens": 60, "min_new_tokens": 60}}  # three seconds
            calls = [lambda: httpx.post(f"{address}/v1/predict", json=long, timeout=30)] * 6
            accepted.set()
            results.extend(together(*calls))

        worker = threading.Thread(target=load)
        worker.start()
        accepted.wait()
        assert wait_until(lambda: "dynamo_inputs_in_flight 6.0" in client.get("/metrics").text)
        process.send_signal(signal.SIGTERM)
        assert wait_until(lambda: client.get("/health/ready").status_code == 503)
        refused = client.post("/v1/predict", json=WRITE)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        worker.join(30)
        assert [answer.status_code for answer in results] == [200] * 6
        assert process.wait(20) == 0
    assert not any("Traceback" in line for line in lines)


def test_a_dead_engine_ends_the_process_with_an_error(checkpoint):
    with _running(BROKEN, checkpoint) as (process, address, lines):
        assert httpx.post(f"{address}/v1/predict", json=WRITE, timeout=30).status_code == 503
        assert process.wait(20) == 1
    assert any("the engine died" in line for line in lines)


def test_logs_say_what_happened_but_not_what_was_sent(checkpoint):
    with _running("from dynamo_mtl.cli import main; main()", checkpoint) as (process, address, lines):
        given = {"inputs": "zebra-in-the-body"}
        assert httpx.post(f"{address}/v1/predict?key=zebra", json=given, timeout=30).status_code == 200
        assert httpx.get(f"{address}/zebra").status_code == 404
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    text = "".join(lines)
    assert re.search(r"POST /v1/predict 200 [\d.]+ ms [0-9a-f]{16}", text)
    assert re.search(r"GET other 404", text)
    assert "zebra" not in text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_an_address_that_others_can_reach_needs_a_key(host):
    with pytest.raises(ConfigError, match="DYNAMO_API_KEY"):
        check_exposure(host, None, insecure=False)
    check_exposure(host, None, insecure=True)
    check_exposure(host, KEY, insecure=False)


def test_a_key_that_is_easily_guessed_is_refused():
    with pytest.raises(ConfigError, match="16"):
        check_exposure("127.0.0.1", "short", insecure=False)
    check_exposure("127.0.0.1", None, insecure=False)


def test_a_checkpoint_does_not_say_where_it_is_served(checkpoint, monkeypatch):
    """Its configuration file may be somebody else's."""
    path = checkpoint / "config.yaml"
    text = path.read_text(encoding="utf-8")
    assert "host: 127.0.0.1" in text
    path.write_text(text.replace("host: 127.0.0.1", "host: 0.0.0.0"), encoding="utf-8")
    seen = []
    monkeypatch.setattr("dynamo_mtl.cli.inference.start_logging", lambda verbose: None)
    monkeypatch.setattr("dynamo_mtl.serving.server.serve", lambda *given: seen.append(given) or 0)
    assert CliRunner().invoke(app, ["serve", str(checkpoint), "serving.port=1"]).exit_code == 0
    config = seen[0][1]().serving
    assert (config.host, config.port) == ("127.0.0.1", 1)


def test_a_taken_port_is_one_sentence(checkpoint, monkeypatch):
    monkeypatch.setattr("dynamo_mtl.cli.inference.start_logging", lambda verbose: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = CliRunner().invoke(app, ["serve", str(checkpoint), f"serving.port={port}"])
    assert isinstance(found.exception, ConfigError)
    assert f"cannot listen on 127.0.0.1:{port}" in str(found.exception)


def test_a_client_that_goes_away_stops_its_answer(checkpoint):
    """S5, over HTTP: nothing is in flight soon after, though the answer would have taken seconds."""
    with _running(SLOW, checkpoint) as (_, address, _), httpx.Client(base_url=address, timeout=30) as client:
        given = {**WRITE, "parameters": {"max_new_tokens": 150, "min_new_tokens": 150}}
        began = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/predict", json=given, timeout=0.5)
        assert wait_until(lambda: "dynamo_inputs_in_flight 0.0" in client.get("/metrics").text, 3)
        assert time.monotonic() - began < 150 * 0.05
        assert "dynamo_abandoned_inputs_total 1.0" in client.get("/metrics").text
