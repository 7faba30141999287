"""Collect what clients say of routes: which task an input should have gone to."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.inference.feedback import FeedbackFile, feedback_problem, feedback_rows
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.serving.handlers import Server
from dynamo_mtl.serving.http_errors import RequestError
from dynamo_mtl.serving.http_requests import FeedbackRequest
from dynamo_mtl.storage import at_home

logger = logging.getLogger(__name__)

PATH = "/v1/feedback"


class FeedbackRoute:
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
        _, stored = await self._server.run_beside(request, FeedbackRequest, self._note)
        return JSONResponse(stored)

    def _note(self, model: DynamoInference, given: FeedbackRequest) -> dict[str, int]:
        """Add the rows of some inputs, or none. Raises ``RequestError`` if that is not possible."""
        task = model.system.tasks.get(given.task)
        if task is None:
            raise RequestError(422, "validation", f"task: no such task; known: {', '.join(model.task_names)}")
        texts = [
            TextInput(one.text or one.question or "", one.second, one.instruction, one.choices) for one in given.items
        ]
        for number, text in enumerate(texts):
            problem = feedback_problem(task, text)
            if problem is not None:
                raise RequestError(422, "validation", f"inputs.{number}: {problem}")
        self._check_room(len(texts))
        rows = feedback_rows(model.predictor, texts, given.task, self._config.texts)
        with self._lock:
            self._check_room(len(rows))
            try:
                self._file.add(rows)
            except OSError:
                logger.exception("feedback could not be written")
                raise RequestError(500, "internal", "the feedback could not be written; the log says why") from None
            return {"stored": len(rows), "rows": self._file.rows}

    def _check_room(self, count: int) -> None:
        if self._file.rows + count > self._config.max_rows:
            raise RequestError(503, "unavailable", "no more feedback is taken: serving.feedback.max_rows is reached")
