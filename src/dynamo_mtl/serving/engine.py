"""Run the model for all requests in one thread.

Waiting inputs are routed together, up to a token budget. Answers that are written as text join the running decoder
between two steps and leave it when they are done. Abandoned and late inputs are dropped before the next pass or step.
When the model is replaced, inputs that were encoded for the old one are still answered by it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import torch

from dynamo_mtl.config.serving_config import ServingConfig
from dynamo_mtl.inference.decoding import Decoder
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import Prediction, Question
from dynamo_mtl.serving.job import Job, Overloaded, Unavailable

logger = logging.getLogger(__name__)


class Engine:
    """Runs a model, in the thread that calls ``run`` or in one of its own.

    Attributes:
        failure: the error that ended the engine, if one did.
    """

    def __init__(
        self,
        predictor: Predictor,
        config: ServingConfig,
        observe: Callable[[int, int], None] = lambda inputs, writing: None,
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            predictor: what is run.
            config: limits.
            observe: called before every pass with the number of its inputs and of answers being written.
            on_death: called when the engine fails for good.
        """
        self.predictor, self.config = predictor, config
        self.failure: BaseException | None = None
        self._observe, self._on_death = observe, on_death
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._inside: set[Job] = set()
        self._tokens = 0
        self._stopping = False
        self._rate = _Rate()
        self._decoder = Decoder(predictor.system.model)
        self._next: Predictor | None = None
        """Of the model that takes over once nothing waits for the present one."""
        self._writing: dict[object, Job] = {}
        """Draft → its job."""
        self._begun, self._ended = threading.Event(), threading.Event()
        self._threads = torch.get_num_threads()
        """Threads of a pass. It is stored because a new thread starts with the number that any thread set last."""
        self.progressed = time.monotonic()
        """When a pass or a step last ended, on the clock of ``time.monotonic``."""

    def start(self) -> None:
        """Start ``run`` in a thread of its own."""
        self._begun.set()
        threading.Thread(target=self.run, name="engine", daemon=True).start()

    @property
    def in_flight(self) -> int:
        """Inputs that wait or are worked on."""
        return len(self._inside)

    @property
    def queued_tokens(self) -> int:
        """Source tokens of ``in_flight``."""
        return self._tokens

    @property
    def is_alive(self) -> bool:
        """Whether the engine is running and accepts inputs."""
        return self._begun.is_set() and not self._ended.is_set() and self.failure is None and not self._stopping

    def check_room(self, inputs: int) -> None:
        """Check that there is room for this many inputs, before they are read.

        Raises:
            Overloaded: there is no room for them.
            Unavailable: the engine is stopping, or it died.
        """
        if not self.is_alive:
            raise Unavailable("the engine died" if self.failure else "the server is stopping")
        if len(self._inside) + inputs > self.config.max_requests:
            raise Overloaded(self._rate.seconds(len(self._inside)))

    def submit(
        self, questions: Sequence[Question], seconds: float | None = None, predictor: Predictor | None = None
    ) -> list[Job]:
        """Accept the inputs of one request, either all or none.

        Args:
            questions: encoded inputs.
            seconds: how long their answers may take; as configured if None.
            predictor: of the model that they were encoded for; the present one if None.

        Raises:
            Overloaded: there is no room for them.
            Unavailable: the engine is stopping, or it died.
        """
        deadline = time.monotonic() + (seconds or self.config.deadline_seconds)
        tokens = sum(question.tokens for question in questions)
        with self._changed:
            self.check_room(len(questions))
            # An empty engine accepts everything that passed the other limits.
            if not self._inside:
                self.progressed = time.monotonic()  # it had nothing to do
            elif self._tokens + tokens > self.config.max_queued_tokens:
                raise Overloaded(self._rate.seconds(len(self._inside)))
            jobs = [Job(question, predictor or self.predictor, deadline) for question in questions]
            self._waiting.extend(jobs)
            self._inside.update(jobs)
            self._tokens += tokens
            self._changed.notify_all()
        return jobs

    def use(self, predictor: Predictor) -> None:
        """Have another model answer, once nothing waits for the present one, which can then be freed."""
        with self._changed:
            self._next = predictor
            self._changed.notify_all()

    def stop(self, seconds: float) -> None:
        """Stop accepting inputs, wait up to ``seconds`` for those in flight, and fail the rest."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._begun.is_set():
            self._ended.wait(seconds)
        for job in list(self._inside):
            self._fail(job, Unavailable("the server stopped"))

    @property
    def has_ended(self) -> bool:
        """Whether ``run`` is over."""
        return self._ended.is_set()

    def run(self) -> None:
        """Process inputs until the engine is stopped."""
        self._begun.set()
        torch.set_num_threads(self._threads)
        try:
            while (jobs := self._take()) is not None:
                self._begin(jobs)
                jobs.clear()  # an idle engine keeps no model alive that was replaced
                self._drop_lost()
                if self._decoder.drafts:
                    self._step()
                self.progressed = time.monotonic()
        except BaseException as error:
            logger.exception("the engine died")
            self.failure = error
            for job in list(self._inside):
                self._fail(job, Unavailable("the engine died"))
            self._on_death()
        finally:
            self._ended.set()

    def _take(self) -> list[Job] | None:
        """Return the inputs of the next pass, or None if the engine is stopping and nothing is left."""
        config = self.config
        with self._changed:
            while not self._waiting and not self._writing:
                if self._stopping:
                    return None
                if self._next is not None:
                    self._switch_to(self._next)
                self._changed.wait()
            if not self._writing:
                end = time.monotonic() + config.max_wait_ms / 1000
                while self._room() and not self._stopping and (left := end - time.monotonic()) > 0:
                    self._changed.wait(left)
            for job in list(self._waiting):
                if (reason := job.lost) is not None:
                    self._waiting.remove(job)
                    self._fail(job, reason)
            taken: list[Job] = []
            tokens = 0
            if self._waiting and not self._writing and self._waiting[0].predictor is not self.predictor:
                self._switch_to(self._waiting[0].predictor)
            while self._waiting and len(self._writing) + len(taken) < config.max_writing:
                if self._waiting[0].predictor is not self.predictor:
                    break  # what is being written must end before the other model goes on
                tokens += self._waiting[0].question.tokens
                if taken and tokens > config.token_budget:
                    break
                taken.append(self._waiting.popleft())
            return taken

    def _switch_to(self, predictor: Predictor) -> None:
        self.predictor, self._next = predictor, None
        self._decoder = Decoder(predictor.system.model)

    def _room(self) -> bool:
        """Whether another input would still fit into the next pass."""
        waiting = sum(job.question.tokens for job in self._waiting)
        return waiting < self.config.token_budget and len(self._waiting) < self.config.max_writing

    def _begin(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        self._observe(len(jobs), len(self._writing))
        try:
            pending = self.predictor.begin([job.question for job in jobs], self._decoder)
        except Exception:
            logger.exception("a pass over %d inputs failed; each is tried by itself", len(jobs))
            # Some may have joined the decoder before it failed.
            strangers = [draft for draft in self._decoder.drafts if draft not in self._writing]
            self.predictor.drop(strangers, self._decoder)
            self._try_alone(jobs)
            return
        for job, own in zip(jobs, pending, strict=True):
            job.pending = own
            if own.draft is None:
                self._finish(job)
            else:
                self._writing[own.draft] = job

    def _step(self) -> None:
        try:
            ended = self.predictor.step(self._decoder)
        except Exception:
            logger.exception("a step over %d answers failed; each is tried by itself", len(self._writing))
            jobs = list(self._writing.values())
            self._writing.clear()
            self._decoder = Decoder(self.predictor.system.model)
            self._try_alone(jobs)
            return
        for draft in ended:
            self._finish(self._writing.pop(draft))

    def _drop_lost(self) -> None:
        """Stop writing answers that were abandoned or are late."""
        lost = {draft: (job, reason) for draft, job in self._writing.items() if (reason := job.lost) is not None}
        if lost:
            self.predictor.drop([draft for draft in self._decoder.drafts if draft in lost], self._decoder)
            for draft, (job, reason) in lost.items():
                del self._writing[draft]
                self._fail(job, reason)

    def _try_alone(self, jobs: Sequence[Job]) -> None:
        """Answer inputs one by one, so that an input that fails does not affect the others."""
        for job in jobs:
            if (reason := job.lost) is not None:
                self._fail(job, reason)
                continue
            try:
                prediction = job.predictor.answer([job.question])[0]
            except Exception as error:
                self._fail(job, error)
            else:
                self._succeed(job, prediction)

    def _finish(self, job: Job) -> None:
        assert job.pending is not None
        try:
            prediction = job.predictor.finish(job.pending)
        except Exception as error:
            self._fail(job, error)
        else:
            self._succeed(job, prediction)

    def _succeed(self, job: Job, prediction: Prediction) -> None:
        self._leave(job)
        self._rate.count()
        if not job.future.done():
            job.future.set_result(prediction)

    def _fail(self, job: Job, reason: Exception) -> None:
        self._leave(job)
        if not job.future.done():
            job.future.set_exception(reason)

    def _leave(self, job: Job) -> None:
        with self._changed:
            if job in self._inside:
                self._inside.remove(job)
                self._tokens -= job.question.tokens


class _Rate:
    """The rate of answers, measured over the latest ones."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=200)

    def count(self) -> None:
        """Record an answer."""
        self._times.append(time.monotonic())

    def seconds(self, inputs: int) -> int:
        """Estimate the seconds until this many inputs are answered, from 1 to 60."""
        if len(self._times) < 2:
            return 1
        span = max(self._times[-1] - self._times[0], 1e-3)
        return min(60, max(1, round(inputs * span / (len(self._times) - 1))))
