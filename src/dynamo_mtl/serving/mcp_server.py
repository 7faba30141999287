"""Offer the tasks of a model as tools of the Model Context Protocol: one tool for each, and one for routing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import anyio
import anyio.to_thread
import mcp_types as types
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette

from dynamo_mtl.config.serving_config import ServingConfig
from dynamo_mtl.errors import DynamoError
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.serving.connection import listener_config
from dynamo_mtl.serving.security import KEY_VARIABLE, LOOPBACK, Guard, check_exposure
from dynamo_mtl.tasks.task import Task

ROUTE = "route"
JSON_TYPES: Mapping[type, str] = {str: "string", float: "number", int: "integer", bool: "boolean"}
MOST_CHOICES = 1000
CONNECTIONS = 64
LABELS_SAID = 50
"""Most labels that the description of a tool lists."""


def mcp_server(model: DynamoInference, limits: ServingConfig) -> Server[Any]:
    """The server of a model, for any transport. It refuses longer inputs than ``limits`` allows."""
    one_at_a_time = anyio.CapacityLimiter(1)
    tasks = {_tool_name(name): task for name, task in model.system.tasks.items()}

    async def list_tools(_: Any, __: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[*(_tool(name, task) for name, task in tasks.items()), _route_tool(model)])

    async def call_tool(_: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        given = dict(params.arguments or {})
        unknown = next((key for key in given if key not in ("text", "context", "instruction", "choices")), None)
        if params.name not in (*tasks, ROUTE):
            return _failed(f"no such tool; known: {', '.join((*tasks, ROUTE))}")
        if unknown is not None or not isinstance(given.get("text"), str):
            return _failed("arguments: expected text, and where the tool says so context, instruction and choices")
        try:
            choices = given.get("choices") or ()
            characters = sum(len(one) for one in (*given.values(), *choices) if isinstance(one, str))
            if characters > limits.max_characters or len(choices) > MOST_CHOICES:
                return _failed(f"at most {limits.max_characters} characters and {MOST_CHOICES} choices are read")
            if params.name == ROUTE:
                answer = await anyio.to_thread.run_sync(lambda: model.route(**given), limiter=one_at_a_time)
            else:
                task = tasks[params.name].name
                found = await anyio.to_thread.run_sync(
                    lambda: model.predict(**given, task_hint=task), limiter=one_at_a_time
                )
                answer = found[task]
        except DynamoError as error:
            return _failed(str(error))
        text = json.dumps(answer, ensure_ascii=False)
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)], structured_content=answer)

    return Server("dynamo", version=version("dynamo-mtl"), on_list_tools=list_tools, on_call_tool=call_tool)


def run_stdio(model: DynamoInference, limits: ServingConfig) -> None:
    """Serve the program that started this one, over standard input and output, until it closes them."""

    async def run() -> None:
        server = mcp_server(model, limits)
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())

    anyio.run(run)


def run_http(model: DynamoInference, config: ServingConfig, insecure: bool = False) -> None:
    """Serve over HTTP at ``/mcp``, until SIGTERM or Ctrl-C.

    Raises:
        ConfigError: others can reach the address without a key.
    """
    key = os.environ.get(KEY_VARIABLE) or None
    check_exposure(config.host, key, insecure)
    settings = listener_config(
        http_app(model, config, key), config.header_seconds, config.keep_alive_seconds, host=config.host,
        port=config.port, limit_concurrency=CONNECTIONS,
    )  # fmt: skip
    settings.lifespan = "on"
    uvicorn.Server(settings).run()


def http_app(model: DynamoInference, config: ServingConfig, key: str | None = None) -> Starlette:
    """The application, which needs ``Authorization: Bearer KEY`` if there is a key."""
    # Without a key, a page of another site must not reach a server on this machine under a name of its own.
    is_open = key is None and config.host in LOOPBACK
    hosts = [f"{host}:*" for host in ("127.0.0.1", "localhost", "[::1]")]
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=is_open,
        allowed_hosts=hosts,
        allowed_origins=[f"http://{host}" for host in hosts],
    )
    app = mcp_server(model, config).streamable_http_app(
        json_response=True, stateless_http=True, max_request_body_size=config.max_body_bytes,
        transport_security=security, host=config.host,
    )  # fmt: skip
    app.add_middleware(Guard, key=key, done=lambda *_: None)
    return app


def _tool_name(task: str) -> str:
    return f"{task}_task" if task == ROUTE else task


def _tool(name: str, task: Task) -> types.Tool:
    """The tool of a task: what it reads, and what it answers."""
    properties: dict[str, Any] = {"text": {"type": "string", "description": "The text, or the question."}}
    required = ["text"]
    if task.needs_context or task.takes_choices:
        properties["context"] = {"type": "string", "description": "The passage that a question is about, or the "
                                 "second of two texts."}  # fmt: skip
    if task.needs_context:
        required.append("context")
    if task.takes_choices:
        properties["choices"] = {"type": "array", "items": {"type": "string"}, "minItems": 2,
                                 "description": "The options to choose from."}  # fmt: skip
        required.append("choices")
    else:
        properties["instruction"] = {"type": "string", "description": "What to do with the text, in words."}
    labels = task.output_names() if task.decides in ("label", "labels", "level") else []
    says = f" Answers with {'one' if task.decides != 'labels' else 'any'} of: {', '.join(labels[:LABELS_SAID])}"
    says += f" and {len(labels) - LABELS_SAID} more." if len(labels) > LABELS_SAID else "."
    parts = {task.answer_key: task.answer_type, **task.answer_parts}
    answer = {key: {"type": [JSON_TYPES[kind], "null"]} if kind in JSON_TYPES else {} for key, kind in parts.items()}
    return types.Tool(
        name=name,
        description=f"{task.config.type.replace('_', ' ').capitalize()}: {task.subject}.{says if labels else ''}",
        input_schema={"type": "object", "properties": properties, "required": required, "additionalProperties": False},
        output_schema={"type": "object", "properties": answer},
    )


def _route_tool(model: DynamoInference) -> types.Tool:
    text = {"type": "string"}
    properties = {"text": text, "context": text, "instruction": text, "choices": {"type": "array", "items": text}}
    return types.Tool(
        name=ROUTE,
        description="Says which of the tasks a text belongs to, with the probability of each, or that it belongs to "
        f"none: {', '.join(model.task_names)}.",
        input_schema={"type": "object", "properties": properties, "required": ["text"], "additionalProperties": False},
    )


def _failed(says: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=says)], is_error=True)
