"""Build the web application: routes, middleware and error handlers."""

from __future__ import annotations

import logging
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from dynamo_mtl.errors import ConfigError, DynamoError, RejectedError
from dynamo_mtl.serving import feedback
from dynamo_mtl.serving.docs_site import api_page
from dynamo_mtl.serving.handlers import Server
from dynamo_mtl.serving.http_errors import Failure, RequestError, as_failure
from dynamo_mtl.serving.http_requests import FeedbackRequest, PredictRequest, RouteRequest
from dynamo_mtl.serving.job import Abandoned, DeadlineExceeded, Overloaded, Unavailable
from dynamo_mtl.serving.security import KEY_VARIABLE, LIVE, REQUEST_ID, Guard, failure, path_of
from dynamo_mtl.serving.status import Status
from dynamo_mtl.serving.wires import labels, openai, systemone

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
PAGES = {"/": "index.html", "/playground.css": "playground.css", "/playground.js": "playground.js"}


def offered(server: Server) -> dict[str, tuple[Any, type[BaseModel]]]:
    """The routes that settings switch on: path → its handler and the form of its body.

    Raises:
        ConfigError: the file of ``serving.feedback`` cannot be written.
    """
    switched = server.config.wires
    wires = {systemone: switched.systemone, openai: switched.openai, labels: switched.labels}
    found = {path: route for wire, is_on in wires.items() if is_on for path, route in wire.wire(server).items()}
    if server.config.feedback.file is not None:
        found[feedback.PATH] = feedback.FeedbackRoute(server).take, FeedbackRequest
    return found


def make_app(server: Server, key: str | None = None) -> FastAPI:
    """The application of a server.

    Args:
        server: answers the requests. The caller starts and stops its engine.
        key: key that clients must send as ``Authorization: Bearer KEY``; no key is needed if None.

    Raises:
        ConfigError: the model can be loaded anew over HTTP, and there is no key.
    """
    if server.config.reload and key is None:
        raise ConfigError(f"serving.reload: needs a key; set {KEY_VARIABLE}")
    status = Status(server)
    origins = server.config.cors_origins
    headers = ["Authorization", "Content-Type", REQUEST_ID]
    # CORS comes before the guard, because a browser sends its preflight request without a key.
    cross_origin = (
        [
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=["GET", "POST"],
                allow_headers=headers,
                expose_headers=[REQUEST_ID],
            )
        ]
        if origins
        else []
    )
    app = FastAPI(
        title="DYNAMO",
        version=version("dynamo-mtl"),
        description="Texts of any tasks in, routed answers out.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[*cross_origin, Middleware(Guard, key=key, done=server.count)],
    )
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": Failure, "description": says}
        for status, says in {
            400: "not JSON", 401: "no key or a wrong one", 408: "the body came too slowly", 413: "the body is too long",
            415: "not application/json", 422: "a value that cannot be used, or an input of no task",
            429: "full: come back after Retry-After seconds", 500: "the input could not be answered",
            503: "stopping, or not ready", 504: "not answered in time",
        }.items()
    }  # fmt: skip

    forms: dict[str, Any] = {}

    def body(model: type[BaseModel], path: str) -> dict[str, Any]:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        forms.update(schema.pop("$defs", {}))
        said: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"{(\w+)}", path)
        ]
        return {**said, "parameters": parameters} if parameters else said

    def described() -> dict[str, Any]:
        found = app.openapi()
        found.setdefault("components", {}).setdefault("schemas", {}).update(forms)
        return found

    for path, handler, model in (
        ("/v1/predict", server.predict, PredictRequest),
        ("/v1/route", server.route, RouteRequest),
    ):
        app.add_api_route(path, handler, methods=["POST"], openapi_extra=body(model, path), responses=errors)
    for path, (handler, form) in offered(server).items():
        app.add_api_route(
            path, handler, methods=["POST"], openapi_extra=body(form, path), responses=errors, response_model=None
        )
    if server.config.reload:
        app.add_api_route("/v1/reload", server.reload, methods=["POST"], responses=errors)
    if server.config.wires.openai:
        for path in (openai.MODELS, f"{openai.MODELS}/{{model}}"):
            app.add_api_route(path, openai.models(server), methods=["GET"], response_model=None)
    for path, handler in (
        ("/v1/tasks", status.tasks),
        (LIVE, status.live),
        ("/health/ready", status.ready),
        ("/info", status.info),
        ("/metrics", status.metrics_text),
    ):
        app.add_api_route(path, handler, methods=["GET"])
        if path.startswith("/health/"):
            app.add_api_route(path, handler, methods=["HEAD"], include_in_schema=False)

    async def schema(_: Request) -> Response:
        """This interface, as OpenAPI."""
        return JSONResponse(described())

    async def docs(_: Request) -> Response:
        """This interface, for people."""
        return HTMLResponse(api_page(described()))

    async def page(request: Request) -> Response:
        """The playground."""
        return FileResponse(STATIC / PAGES[path_of(request.scope)])

    app.add_api_route("/openapi.json", schema, methods=["GET"], include_in_schema=False)
    app.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False)
    for path in PAGES:
        app.add_api_route(path, page, methods=["GET"], include_in_schema=False)

    async def known(request: Request, reason: Exception) -> Response:
        if isinstance(reason, HTTPException):
            kinds = {404: "not_found", 405: "method"}
            said = RequestError(
                reason.status_code, kinds.get(reason.status_code, "validation"), str(reason.detail).lower(),
                dict(reason.headers or {}),
            )  # fmt: skip
        elif isinstance(reason, DynamoError) and not isinstance(reason, RejectedError):
            said = RequestError(422, "validation", str(reason))
        else:
            said = as_failure(reason)
        if isinstance(reason, Abandoned):
            server.metrics.abandoned.inc(getattr(request.state, "inputs", 1))
        request_id = str(request.state.request_id)
        if path_of(request.scope).startswith(openai.PATHS):
            return openai.failure(said, request_id)
        return failure(said.status, said.error_type, said.message, request_id, said.headers)

    for kind in (RequestError, HTTPException, DynamoError, Overloaded, Unavailable, DeadlineExceeded, Abandoned):
        app.add_exception_handler(kind, known)
    return app
