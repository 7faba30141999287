"""A served tiny model, and clients of it."""

import contextlib
import threading
import time

import httpx
import pytest
import uvicorn
from tiny import answer_by_text, save_system

from dynamo_mtl.config.serving_config import ServingConfig
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.serving.app import make_app
from dynamo_mtl.serving.connection import listener_config
from dynamo_mtl.serving.handlers import Server


@pytest.fixture
def checkpoint(system, session_config, tmp_path):
    """The small system, untrained, with heads whose answers differ from text to text."""
    answer_by_text(system)
    return save_system(system, tmp_path / "model")


@pytest.fixture
def model(checkpoint):
    """It, as programs use it."""
    return DynamoInference(checkpoint, device="cpu")


@pytest.fixture
def serve(model):
    """Start a server on a free port of this machine; gives it and a client. Takes settings, and a key."""
    with contextlib.ExitStack() as stack:

        def start(key=None, **settings):
            server = Server(model, ServingConfig(**{"deadline_seconds": 20.0, **settings}))
            server.engine.start()
            own = server.config
            config = listener_config(
                make_app(server, key), own.header_seconds, own.keep_alive_seconds, host="127.0.0.1", port=0
            )
            running = uvicorn.Server(config)
            thread = threading.Thread(target=running.run, daemon=True)
            thread.start()
            while not running.started:
                time.sleep(0.01)
            port = running.servers[0].sockets[0].getsockname()[1]

            def stop():
                running.should_exit = True
                thread.join(10)
                server.engine.stop(5)

            stack.callback(stop)
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30))
            return server, client

        yield start
