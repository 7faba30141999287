"""Handle the requests to the routes that answer inputs."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dynamo_mtl.config.serving_config import ServingConfig
from dynamo_mtl.errors import ConfigError, DynamoError, InputError, RejectedError
from dynamo_mtl.inference.answers import answer_of, failed, refuse, shown, shown_together
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.inference.request_reader import Given, Manner
from dynamo_mtl.inference.requests import Asked, Prediction
from dynamo_mtl.inference.task_choice import ALL, GROUP, choose_tasks, groups
from dynamo_mtl.serving.engine import Engine
from dynamo_mtl.serving.http_errors import RequestError, as_failure
from dynamo_mtl.serving.http_requests import Input, PredictRequest, RouteRequest, read_body, read_json, validated
from dynamo_mtl.serving.job import Abandoned, DeadlineExceeded, Job, Overloaded, Unavailable
from dynamo_mtl.serving.prometheus import Metrics

logger = logging.getLogger(__name__)

GRACE_SECONDS = 1.0
"""How long to wait past the deadline for an answer that may be about to arrive."""
T = TypeVar("T")
R = TypeVar("R", bound=RouteRequest)


class Server:
    """A model, the engine that runs it, and the handlers of the routes.

    Attributes:
        model: what answers. It may be replaced at any time, so a request uses the one that it began with.
        is_draining: whether the server is stopping. It then finishes accepted inputs and refuses new ones.
    """

    def __init__(
        self,
        model: DynamoInference,
        config: ServingConfig,
        on_death: Callable[[], None] = lambda: None,
        load: Callable[[], DynamoInference] | None = None,
    ) -> None:
        """
        Args:
            model: what answers.
            config: limits.
            on_death: called from another thread when the engine dies.
            load: loads the newest version of the model; the same checkpoint in the same way if None.
        """
        self.model, self.config, self._load = model, config, load
        self._replacing = False
        self.is_draining = False
        self.metrics = Metrics(model.task_names, lambda: self.engine.in_flight, lambda: self.engine.queued_tokens)
        self.engine = Engine(model.predictor, config, self.metrics.observe_pass, on_death)
        self.started = int(time.time())
        """When it was made, in seconds since 1970."""
        self._routing = 0
        """Number of routing requests in progress."""
        # Passes outside the engine get one thread each. With more threads than cores, OpenMP would put all of them to
        # sleep between two operations, and the engine's passes would take twice as long.
        self.beside = ThreadPoolExecutor(config.max_routing, "beside", lambda: torch.set_num_threads(1))

    async def predict(self, request: Request) -> Response:
        """Answer inputs of any tasks, in any mix."""
        self.refuse_if_draining()
        self.engine.check_room(1)
        asked = await self._read(request, PredictRequest)
        items = asked.items
        model = self.model
        for place, hint in (
            ("task_hint", asked.task_hint),
            *((f"inputs.{i}.task_hint", one.task_hint) for i, one in enumerate(items)),
        ):
            if hint is not None and hint not in model.task_names:
                raise RequestError(422, "validation", f"{place}: no such task; known: {', '.join(model.task_names)}")
        manner = _manner(model, asked)
        each = 1 if manner.tasks is None else len(manner.tasks.names)
        if each > 1 and len(items) * each > self.config.max_requests:
            raise RequestError(
                422, "validation",
                f"tasks: {each} tasks about {len(items)} inputs are {len(items) * each} questions; send at most "
                f"{self.config.max_requests} at a time",
            )  # fmt: skip
        self.engine.check_room(len(items) * each)
        request.state.inputs = len(items)
        given = [item.model_dump(exclude_none=True) for item in items]
        read = await asyncio.to_thread(lambda: [model.reader.read(one, manner) for one in given])
        limit = self.config.deadline_seconds
        found = await self.settle(request, model, read, min(limit, asked.deadline_seconds or limit))
        shown = [self._shown(one, own, str(request.state.request_id)) for one, own in found]
        if not isinstance(asked.inputs, list):
            content, status, headers = shown[0]
            return JSONResponse(content, status, headers)
        late = [one for one in shown if one[1] in (503, 504)]
        if late:
            return JSONResponse(late[0][0], late[0][1], late[0][2])
        return JSONResponse([content for content, _, _ in shown])

    async def ask(
        self, request: Request, model: DynamoInference, wanted: Sequence[tuple[Given, str | None]]
    ) -> list[tuple[Prediction, int]]:
        """Have inputs answered for one of the other interfaces.

        Args:
            request: where they come from.
            model: what answers.
            wanted: each input, and the task that must answer it; the router chooses if None.

        Returns:
            Each answer, and the number of tokens that were read for it.

        Raises:
            RequestError: too many inputs, too long ones, or one that cannot be answered.
        """
        self.refuse_if_draining()
        self.check_questions(len(wanted))
        for given, _ in wanted:
            parts = [given] if isinstance(given, str) else [v for v in given.values() if v is not None]
            self.check_questions(0, sum(len(one) if isinstance(one, str) else sum(map(len, one)) for one in parts))
        self.engine.check_room(len(wanted))
        request.state.inputs = len(wanted)
        read = await asyncio.to_thread(lambda: [model.reader.read(given, Manner(task)) for given, task in wanted])
        found: list[tuple[Prediction, int]] = []
        for asked, jobs in await self.settle(request, model, read):
            outcome = self.outcome(jobs[0])
            if isinstance(outcome, RequestError):
                raise outcome
            found.append((outcome, asked.questions[0].tokens))
        return found

    def check_questions(self, count: int, characters: int = 0) -> None:
        """Refuse more questions, or a longer text, than are taken. Raises ``RequestError``."""
        if count > self.config.max_requests:
            raise RequestError(
                422, "validation", f"{count} questions; send at most {self.config.max_requests} at a time"
            )
        if characters > self.config.max_characters:
            raise RequestError(
                422, "validation", f"an input of more than {self.config.max_characters} characters is not read"
            )

    async def settle(
        self, request: Request, model: DynamoInference, read: Sequence[Asked], seconds: float | None = None
    ) -> list[tuple[Asked, list[Job]]]:
        """Have all that is asked answered, and return each input with its jobs, which have all ended.

        Raises:
            Overloaded, Unavailable: it is not accepted.
            DeadlineExceeded: it takes longer than ``seconds``, or the configured time if None.
            Abandoned: the client went away.
        """
        seconds = seconds or self.config.deadline_seconds
        questions = [question for one in read for question in one.questions]
        jobs = self.engine.submit(questions, seconds, model.predictor)
        try:
            # The engine checks deadlines only between passes, so this timeout covers a pass that hangs.
            async with asyncio.timeout(seconds + GRACE_SECONDS):
                await self._unless_gone(request, _settled(jobs))
        except TimeoutError:
            raise DeadlineExceeded from None
        finally:
            for job in jobs:
                job.give_up()
        remaining = iter(jobs)
        return [(one, list(itertools.islice(remaining, len(one.questions)))) for one in read]

    async def route(self, request: Request) -> Response:
        """Say where inputs belong, without answering them."""
        asked, found = await self.run_beside(request, RouteRequest, lambda model, asked: _routes(model, asked.items))
        return JSONResponse(found if isinstance(asked.inputs, list) else found[0])

    async def run_beside(self, request: Request, kind: type[R], work: Callable[[DynamoInference, R], T]) -> tuple[R, T]:
        """Read a request and do its work beside the engine, where at most ``max_routing`` requests are at a time.

        Args:
            request: the request.
            kind: the form of its body.
            work: computes the result from the model and the body, in a thread of its own.

        Raises:
            Overloaded, Unavailable: there is no room, or the server is stopping.
            RequestError: the body cannot be used.
        """
        self.refuse_if_draining()
        if self._routing >= self.config.max_routing:
            raise Overloaded(1)
        self._routing += 1
        try:
            asked = await self._read(request, kind)
            found = await asyncio.get_running_loop().run_in_executor(self.beside, work, self.model, asked)
        finally:
            self._routing -= 1
        return asked, found

    async def reload(self, request: Request) -> Response:
        """Load the newest version of the checkpoint, and answer with it from the next request on."""
        self.refuse_if_draining()
        await read_body(request, self.config)  # a form on another site cannot send the content type that this needs
        try:
            model = await self.replace()
        except DynamoError as error:
            raise RequestError(422, "validation", f"{error}; the model that was there goes on") from None
        except (RuntimeError, MemoryError):
            logger.exception("the model could not be loaded anew")
            says = "the newest version cannot be loaded, the log says why; the model that was there goes on"
            raise RequestError(500, "internal", says) from None
        return JSONResponse({"tasks": model.task_names, "weight_hash": model.metadata.weight_hash})

    async def replace(self) -> DynamoInference:
        """Load the model anew beside the present one, which goes on until then and finishes what it accepted.

        Raises:
            DynamoError: it cannot be loaded. The present one stays.
            Overloaded: another is being loaded.
        """
        if self._replacing:
            raise Overloaded(5)
        self._replacing = True
        try:
            model = await asyncio.get_running_loop().run_in_executor(self.beside, self._loaded)
        finally:
            self._replacing = False
        self.model = model
        self.engine.use(model.predictor)
        logger.info(
            "now serving the version of %s that has the tasks %s", model.checkpoint, ", ".join(model.task_names)
        )
        return model

    def _loaded(self) -> DynamoInference:
        model = self.model.loaded_anew() if self._load is None else self._load()
        model.route("warm up")
        return model

    def count(self, route: str, status: int, seconds: float) -> None:
        """Record a request in the metrics."""
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)

    def refuse_if_draining(self) -> None:
        """Refuse a new request while the server is stopping. Raises ``Unavailable``."""
        if self.is_draining:
            raise Unavailable("the server is stopping")

    async def _read(self, request: Request, kind: type[R]) -> R:
        body = await read_body(request, self.config)
        return validated(kind, read_json(body), self.config)

    async def _unless_gone(self, request: Request, answer: Awaitable[T]) -> T:
        """Wait for an answer, but no longer than the client does.

        Raises:
            Abandoned: the client went away.
        """
        waiting, gone = asyncio.ensure_future(answer), asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            raise Abandoned()
        finally:
            waiting.cancel()
            gone.cancel()

    def _shown(self, asked: Asked, jobs: Sequence[Job], request_id: str) -> tuple[dict[str, Any], int, dict[str, str]]:
        """Return the content, status and headers of the response to one input."""
        found = [self.outcome(job) for job in jobs]
        if asked.names is None:
            if not isinstance(found[0], RequestError):
                return shown(jobs[0].predictor, found[0]), 200, {}
            said = found[0]
            return {**failed(said.message, said.error_type), "request_id": request_id}, said.status, said.headers
        late = next((one for one in found if isinstance(one, RequestError) and one.status in (503, 504)), None)
        if late is not None:
            return {**failed(late.message, late.error_type), "request_id": request_id}, late.status, late.headers
        answers: dict[str, dict[str, Any]] = {}
        for question, one in zip(asked.questions, found, strict=True):
            assert question.task is not None
            is_answer = not isinstance(one, RequestError)
            answers[question.task] = (
                answer_of(jobs[0].predictor, one) if is_answer else failed(one.message, one.error_type)
            )
        route = next((one.route for one in found if not isinstance(one, RequestError)), None)
        return shown_together(jobs[0].predictor, asked, answers, route), 200, {}

    def outcome(self, job: Job) -> Prediction | RequestError:
        """What a job that has ended gave, and count it."""
        reason = job.future.exception()
        if reason is None:
            prediction: Prediction = job.future.result()
            try:
                refuse(job.predictor, prediction)
            except (RejectedError, InputError) as error:
                reason = error
            else:
                self.metrics.answers.labels(prediction.task).inc()
                self.metrics.rejected.inc(prediction.rejected)
                return prediction
        if isinstance(reason, RejectedError):
            self.metrics.rejected.inc()
        elif not isinstance(reason, DeadlineExceeded | Unavailable | InputError):
            self.metrics.failed.inc()
        return as_failure(reason)


def _manner(model: DynamoInference, asked: PredictRequest) -> Manner:
    """How a request wants its inputs answered. An error names what is known, and not what was sent."""
    try:
        choose_tasks(asked.tasks, model.system)
    except ConfigError:
        known = ", ".join((*model.task_names, *(f"{GROUP}{name}" for name in groups(model.system)), ALL))
        raise RequestError(422, "validation", f"tasks: no such task or group; known: {known}") from None
    return model.reader.manner(asked.task_hint, asked.tasks, asked.top_k, asked.parameters.given)


def _routes(model: DynamoInference, items: Sequence[Input]) -> list[dict[str, Any]]:
    return [
        model.route(
            item.text or item.question or "",
            context=item.second,
            instruction=item.instruction,
            choices=item.choices,
        )
        for item in items
    ]


async def _disconnected(request: Request) -> None:
    """Return once the client has gone; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _settled(jobs: Sequence[Job]) -> None:
    """Return once every job has ended, in whatever way."""
    await asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs), return_exceptions=True)
