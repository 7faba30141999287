"""Handle the requests to the routes that say what is served, and whether it works."""

from __future__ import annotations

import asyncio
import logging
import time
from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from dynamo_mtl.serving.handlers import Server
from dynamo_mtl.serving.job import Unavailable

logger = logging.getLogger(__name__)

READY_SECONDS = 1.0
"""For how long a successful forward pass counts as proof that the model is ready."""
PROBE_SECONDS = 0.1
"""How long a readiness check waits for its test pass; the next check judges a slower one."""


class Status:
    """What a server says of itself."""

    def __init__(self, server: Server) -> None:
        """
        Args:
            server: what is asked about.
        """
        self._server = server
        self._worked = float("-inf")
        self._probe: asyncio.Future[bool] | None = None
        self._probed = float("-inf")
        """When the probe began."""

    async def tasks(self, _: Request) -> Response:
        """The tasks, and what each one needs and gives."""
        server = self._server
        system = server.model.system
        return JSONResponse(
            [
                {
                    "name": name,
                    "type": system.config.tasks[name].type,
                    "group": system.config.tasks[name].group,
                    "needs_context": task.needs_context,
                    "takes_choices": task.takes_choices,
                    "requires_instruction": system.config.tasks[name].requires_instruction,
                    "description": task.subject,
                    "answer": {"key": task.answer_key, "form": task.answer_form},
                    "examples": system.config.tasks[name].examples,
                }
                for name, task in system.tasks.items()
            ]
        )

    async def info(self, _: Request) -> Response:
        """What is served, and within which limits."""
        server = self._server
        metadata = server.model.metadata
        return JSONResponse(
            {
                "version": version("dynamo-mtl"),
                "tasks": server.model.task_names,
                "backbone": metadata.backbone,
                "weight_hash": metadata.weight_hash,
                "device": str(server.model.system.device),
                "limits": server.config.model_dump(exclude={"host", "port", "num_threads"}),
            }
        )

    async def live(self, _: Request) -> Response:
        """Whether the process answers."""
        return JSONResponse({"status": "live"})

    async def ready(self, request: Request) -> Response:
        """Whether the model answers. A recent pass proves it; otherwise one is run, at most once a second."""
        server = self._server
        server.refuse_if_draining()
        if not server.engine.is_alive:
            raise Unavailable("the engine died")
        now = time.monotonic()
        if server.engine.in_flight:
            if now - server.engine.progressed > server.config.deadline_seconds:
                raise Unavailable("the model does not answer")
        elif now - max(self._worked, server.engine.progressed) > READY_SECONDS:
            if self._probe is None or self._probe.done():
                self._probed = now
                self._probe = asyncio.get_running_loop().run_in_executor(server.beside, self._works)
            await asyncio.wait([self._probe], timeout=PROBE_SECONDS)
            failed = self._probe.done() and not self._probe.result()
            if failed or now - self._probed > server.config.deadline_seconds:
                raise Unavailable("the model does not answer")
        return JSONResponse({"status": "ready"})

    async def metrics_text(self, _: Request) -> Response:
        """Counters in the format that Prometheus reads."""
        server = self._server
        return PlainTextResponse(server.metrics.text(), media_type="text/plain; version=0.0.4")

    def _works(self) -> bool:
        try:
            self._server.model.route("ready")
        except Exception:
            logger.exception("the model does not answer")
            return False
        self._worked = time.monotonic()
        return True
