"""The Model Context Protocol: its own client, in process, over standard input and output, and over HTTP."""

import json
import os
import sys
import threading
import time

import anyio
import httpx2
import pytest
import uvicorn
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from tiny import KINDS, make_kinds_system, nearly, save_system

from dynamo_mtl.config.serving_config import ServingConfig
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.serving.mcp_server import http_app, mcp_server

TEXT = "great handle, poor zip"
KEY = "a-key-of-16-chars"


@pytest.fixture(scope="module")
def checkpoint(session_config, tmp_path_factory):
    system = make_kinds_system(session_config.model.model_dump())
    return save_system(system, tmp_path_factory.mktemp("mcp") / "model")


@pytest.fixture(scope="module")
def model(checkpoint):
    return DynamoInference(checkpoint, device="cpu")


async def check(client, model):
    """Tools with their schemas, and answers as of a call."""
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert list(tools) == [*KINDS, "route"]
    assert tools["faq"].input_schema["required"] == ["text", "context"]
    assert tools["quiz"].input_schema["required"] == ["text", "choices"]
    assert tools["topics"].input_schema["required"] == ["text"]
    assert all(label in tools["topics"].description for label in model.system.tasks["topics"].config.labels)
    found = await client.call_tool("topics", {"text": TEXT})
    expected = model.predict(TEXT, task_hint="topics")["topics"]
    assert found.structured_content == nearly(expected, 1e-5)
    assert json.loads(found.content[0].text) == nearly(expected, 1e-5)
    quiz = await client.call_tool("quiz", {"text": "Who?", "choices": ["Ada", "Tom"]})
    assert quiz.structured_content["choice"] in ("Ada", "Tom")
    routed = await client.call_tool("route", {"text": TEXT})
    assert routed.structured_content["probabilities"] == nearly(model.route(TEXT)["probabilities"], 1e-5)
    for name, arguments, sentence in (
        ("faq", {"text": "Who?"}, "the task 'faq' answers from a passage, and there is none"),
        ("topics", {"text": 3}, "arguments: expected text"),
        ("topics", {"text": "a", "zebra": 1}, "arguments: expected text"),
        ("none", {"text": "a"}, "no such tool; known: topics"),
    ):
        wrong = await client.call_tool(name, arguments)
        assert wrong.is_error
        assert sentence in wrong.content[0].text


def test_a_client_in_the_same_process(model):
    async def run():
        async with Client(mcp_server(model, ServingConfig())) as client:
            await check(client, model)

    anyio.run(run)


def test_a_client_that_starts_the_command(model, checkpoint):
    async def run():
        command = StdioServerParameters(
            command=sys.executable, args=["-m", "dynamo_mtl.cli", "mcp", str(checkpoint)], env=dict(os.environ)
        )
        async with Client(command) as client:
            await check(client, model)

    anyio.run(run)


def test_a_client_over_http_needs_the_key(model):
    config = uvicorn.Config(http_app(model, ServingConfig(), KEY), host="127.0.0.1", port=0, log_level="warning")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}/mcp"

    async def run():
        headers = {"Authorization": f"Bearer {KEY}"}
        async with (
            httpx2.AsyncClient(headers=headers) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            await check(client, model)

    try:
        anyio.run(run)
        assert httpx2.post(url, json={}).status_code == 401
    finally:
        running.should_exit = True
        thread.join(10)


def test_without_a_key_other_names_of_this_machine_are_refused(model):
    start = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}

    async def run():
        app = http_app(model, ServingConfig())
        async with app.router.lifespan_context(app):
            transport = httpx2.ASGITransport(app=app)
            async with httpx2.AsyncClient(transport=transport) as client:
                own = await client.post("http://127.0.0.1:8000/mcp", json=start, headers=headers)
                evil = await client.post("http://evil.example/mcp", json=start, headers=headers)
        return own.status_code, evil.status_code

    own, evil = anyio.run(run)
    assert own != 421
    assert evil == 421


def test_limits_hold_for_tools(model):
    async def run():
        async with Client(mcp_server(model, ServingConfig(max_characters=20))) as client:
            return await client.call_tool("topics", {"text": "x" * 21})

    found = anyio.run(run)
    assert found.is_error
    assert "at most 20 characters" in found.content[0].text
