"""Collect what clients say of routes: which task an input should have gone to."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.inference.feedback import FeedbackFile, feedback_row
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.serving.handlers import Server
from dynamo_mtl.serving.http_errors import RequestError
from dynamo_mtl.serving.http_requests import FeedbackRequest, Input, read_body, read_json, validated
from dynamo_mtl.storage import at_home

logger = logging.getLogger(__name__)

PATH = "/v1/feedback"


class Feedback:
    """Handles ``POST /v1/feedback``."""

    def __init__(self, server: Server) -> None:
        """
        Args:
            server: whose model routes the inputs.

        Raises:
            ConfigError: the file cannot be written.
        """
        self._server, self._config = server, server.config.feedback
        assert self._config.file is not None
        path = Path(at_home(self._config.file))
        try:
            self._file = FeedbackFile(path)
        except OSError as error:
            raise ConfigError(f"serving.feedback.file: {path} cannot be written ({error})") from None
        self._lock = threading.Lock()

    async def take(self, request: Request) -> Response:
        """Note which task is right for some inputs."""
        server = self._server
        server.refuse_if_draining()
        body = await read_body(request, server.config)
        given = cast("FeedbackRequest", validated(FeedbackRequest, read_json(body), server.config))
        model = server.model
        if given.task not in model.task_names:
            raise RequestError(422, "validation", f"task: no such task; known: {', '.join(model.task_names)}")
        stored = await asyncio.get_running_loop().run_in_executor(
            server.beside, self._note, model, given.items, given.task
        )
        return JSONResponse({"stored": stored, "rows": self._file.rows})

    def _note(self, model: DynamoInference, items: list[Input], task: str) -> int:
        """Add the rows of some inputs, and return their number. Raises ``RequestError`` if there is no room for all."""
        texts = [TextInput(one.text or one.question or "", one.second, one.instruction, one.choices) for one in items]
        rows = [feedback_row(model.predictor, one, task, self._config.texts) for one in texts]
        with self._lock:
            if self._file.rows + len(rows) > self._config.max_rows:
                raise RequestError(
                    503, "unavailable", "no more feedback is taken: serving.feedback.max_rows is reached"
                )
            try:
                for row in rows:
                    self._file.add(row)
            except OSError:
                logger.exception("feedback could not be written")
                raise RequestError(500, "internal", "the feedback could not be written; the log says why") from None
        return len(rows)
