"""Run a model on texts: route every input and answer it, with mixed tasks in one forward pass."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.inference.decoding import Decoder, make_cache
from dynamo_mtl.inference.draft import Draft
from dynamo_mtl.inference.requests import Pending, Prediction, Question, Route, TextInput
from dynamo_mtl.model.batch import Batch, to_device
from dynamo_mtl.model.calibration import Calibration
from dynamo_mtl.model.dynamo import Output, Trunk
from dynamo_mtl.model.heads import LanguageModelHead
from dynamo_mtl.model.router import top_k_weights
from dynamo_mtl.out_of_memory import split_by_tokens
from dynamo_mtl.system import System
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource, PackedExamples, TaskView
from dynamo_mtl.tasks.generation_task import GenerationTask
from dynamo_mtl.tasks.task import Answer

TOKEN_BUDGET = 8192
"""Most source tokens in one forward pass."""
ONE_THREAD = 48
"""A pass with at most this many source tokens uses one thread (``benchmarks/busy.py``)."""
_PREDICTORS: weakref.WeakSet[Predictor] = weakref.WeakSet()


def _after_fork() -> None:
    """In a forked child, use one thread, since OpenMP's workers exist only in the parent, and replace the locks."""
    if _PREDICTORS:
        torch.set_num_threads(1)
    for predictor in _PREDICTORS:
        predictor.unlock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Predictor:
    """Runs a system over lists of inputs, mixed tasks in one forward pass. May be called from several threads."""

    def __init__(self, system: System, calibration: Calibration | None = None) -> None:
        """
        Args:
            system: what is run.
            calibration: calibrates the router's confidence; if None, it is not changed.
        """
        self.system = system
        self.calibration = calibration or Calibration()
        # The lock guards the adapters' packed weights, which the model caches. Passes share nothing else.
        self._lock = threading.Lock()
        _PREDICTORS.add(self)
        system.model.eval()

    def unlock(self) -> None:
        """Replace the lock, which a thread of the parent process may have held during the fork."""
        self._lock = threading.Lock()

    @torch.inference_mode()
    def read(self, inputs: Sequence[TextInput], reader: Callable[[Batch, Trunk], Tensor]) -> Tensor:
        """Run only the trunk and return what ``reader`` computes from it, one row per input, on the CPU.

        Args:
            inputs: texts of any tasks.
            reader: a batch and its trunk → ``(examples, …)``.
        """
        questions = [Question(self._encode(i)) for i in inputs]
        rows: dict[int, Tensor] = {}
        for chunk in _chunks(questions):
            packed = self._collate([questions[i].source for i in chunk], [None] * len(chunk))
            with self._lock, self._threads_for(sum(questions[i].tokens for i in chunk)):
                self.system.model.eval()
                found = reader(packed.batch, self.system.model.trunk(packed.batch)).cpu()
            rows.update(zip(chunk, found, strict=True))
        return torch.stack([rows[index] for index in range(len(inputs))])

    def route(self, inputs: Sequence[TextInput]) -> list[Route]:
        """Route inputs without answering them. Only the layers that the router reads are computed.

        Raises:
            ConfigError: the model has no router.
        """
        return self._routed(inputs, with_features=False)[0]

    def route_with_features(self, inputs: Sequence[TextInput]) -> list[tuple[Route, Tensor]]:
        """Like ``route``, each with the features ``(features,)`` that the router has read."""
        return list(zip(*self._routed(inputs, with_features=True), strict=True))

    @torch.inference_mode()
    def _routed(self, inputs: Sequence[TextInput], with_features: bool) -> tuple[list[Route], Tensor]:
        """Routes, and ``(inputs, features)``, without columns if they are not wanted."""
        self.check_routed()
        router = self.system.model.router
        if not inputs:
            return [], torch.zeros(0, 0)
        familiarity = self.system.model.ood.familiarity

        def read(_: Batch, trunk: Trunk) -> Tensor:
            features = trunk.features
            found = [router(features).logits, familiarity(features)[:, None]]
            return torch.cat([*found, features] if with_features else found, dim=1)

        logits, familiar, features = self.read(inputs, read).tensor_split([router.adapters, router.adapters + 1], dim=1)
        logits = self._possible(logits, [bool(one.choices) for one in inputs])
        return _routes(self._calibrated(logits), familiar[:, 0]), features

    def predict(
        self, inputs: Sequence[TextInput], tasks: Sequence[str | None] | None = None, weights: Tensor | None = None
    ) -> list[Prediction]:
        """Route and answer.

        Args:
            inputs: texts of any tasks, in any mix.
            tasks: for each input the task that must answer, or None to let the router choose.
            weights: ``(inputs, adapters)`` mixing weights to use instead of one adapter or the router's choice. The
                heads are then those of ``tasks``, so every input must name a task.
        """
        hints = tasks if tasks is not None else [None] * len(inputs)
        given = weights if weights is not None else [None] * len(inputs)
        return self.answer([Question(self._encode(i), t, w) for i, t, w in zip(inputs, hints, given, strict=True)])

    def answer(self, questions: Sequence[Question]) -> list[Prediction]:
        """Route and answer encoded inputs."""
        results: dict[int, Prediction] = {}
        for chunk in _chunks(questions):
            decoder = Decoder(self.system.model)
            pending = self.begin([questions[i] for i in chunk], decoder)
            while decoder.drafts:
                self.step(decoder)
            results.update(zip(chunk, map(self.finish, pending), strict=True))
        return [results[index] for index in range(len(questions))]

    @torch.inference_mode()
    def begin(self, questions: Sequence[Question], decoder: Decoder) -> list[Pending]:
        """Route inputs in one pass. Inputs of tasks that write text join the decoder; the others are answered.

        Raises:
            ConfigError: no task is named, and the model has no router.
        """
        if any(q.task is None for q in questions):
            self.check_routed()
        with self._lock, self._threads_for(sum(question.tokens for question in questions)):
            self.system.model.eval()
            return self._begin(questions, decoder)

    @contextmanager
    def _threads_for(self, tokens: int) -> Iterator[None]:
        """Use one thread for a short pass on a CPU: it is as fast, and waits for no other thread on a busy one."""
        threads = torch.get_num_threads()
        if tokens > ONE_THREAD or threads == 1 or self.system.device.type != "cpu":
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def check_routed(self) -> None:
        """Refuse to let the router choose if there is none. Raises ``ConfigError``."""
        if self.system.config.model.adapters != "routed":
            raise ConfigError("task_hint: this model was trained without a router (model.adapters), so name the task")

    def step(self, decoder: Decoder) -> list[Draft]:
        """Write one token of every draft of a decoder; see ``Decoder.step``."""
        with self._lock:
            return decoder.step()

    def drop(self, drafts: Sequence[Draft], decoder: Decoder) -> None:
        """Stop writing some drafts of a decoder."""
        with self._lock:
            decoder.drop(drafts)

    def finish(self, pending: Pending) -> Prediction:
        """Return the answer of an input. Its draft, if it has one, must have ended."""
        answer = pending.answer
        if pending.draft is not None:
            task, found = self.system.tasks[pending.task], pending.draft.ranked()
            assert isinstance(task, GenerationTask)
            texts = (self.written(pending, h.ids, h.log_probability / max(1, h.tokens)) for h in found)
            answer = task.choose(texts)
        assert answer is not None
        source, of_task = pending.question.source, self.system.tasks[pending.task]
        truncated = None
        if of_task.is_cut(source):
            truncated = {"characters": source.characters, "read_characters": of_task.read_characters(source)}
        problem = self.problem(pending.question, pending.task)
        return Prediction(pending.task, answer, pending.route, pending.rejected, problem, truncated)

    def problem(self, question: Question, task: str) -> str | None:
        """Why a task cannot answer an input as it is; None if it can."""
        of_task = self.system.tasks[task]
        if of_task.takes_choices != bool(question.source.choices):
            lacks = "chooses among options, and there are none; give two or more as choices"
            return f"the task '{task}' {lacks if of_task.takes_choices else 'takes no choices; leave them out'}"
        if of_task.needs_context and not question.source.has_context:
            return f"the task '{task}' {of_task.missing_context}"
        return question.unusable.get(task)

    def written(self, pending: Pending, ids: list[int], score: float) -> Answer:
        """Decode tokens into an answer, with the vocabulary of the input's task."""
        task = self.system.tasks[pending.task]
        assert isinstance(task, GenerationTask)
        return task.answer(ids, score, pending.question.source)

    def _encode(self, text: TextInput) -> EncodedSource:
        return self.system.source.encode(text.text, text.context, text.instruction, text.choices)

    def _possible(self, logits: Tensor, have_choices: Sequence[bool]) -> Tensor:
        """Routing logits ``(inputs, adapters)``, minus infinity where an input cannot belong to a task.

        An input with options belongs to a task that chooses among some, and no other input does. Where a model has no
        task for an input, its logits stay as they are, and ``problem`` says what is wrong.
        """
        take = torch.tensor([task.takes_choices for task in self.system.tasks.values()], device=logits.device)
        have = torch.tensor(have_choices, device=logits.device)
        if not bool(have.any()) and not bool(take.any()):
            return logits
        fits = have[:, None] == take[None, :]
        return logits.masked_fill(~(fits | ~fits.any(dim=1, keepdim=True)), float("-inf"))

    def _calibrated(self, logits: Tensor) -> Tensor:
        """Routing logits → calibrated probabilities."""
        return self.calibration.probabilities(logits / self.system.model.router.temperature)

    def _collate(self, sources: Sequence[EncodedSource], tasks: Sequence[str | None]) -> PackedExamples:
        examples: list[EncodedExample] = []
        for source, name in zip(sources, tasks, strict=True):
            if name is None:
                examples.append(EncodedExample(0, [w.ids for w in source.windows]))
            else:
                examples.append(self.system.tasks[name].unanswered(source, 0))
        return to_device(self.system.collate(examples), self.system.device)

    def _trunk(self, sources: Sequence[EncodedSource]) -> Trunk:
        """Run the layers below the adapters. Equal sources, such as one text for several tasks, are run once."""
        keys = [tuple(tuple(w.ids) for w in source.windows) for source in sources]
        distinct = {
            key: (number, source) for number, (key, source) in enumerate(dict(zip(keys, sources, strict=True)).items())
        }
        own = [source for _, source in distinct.values()]
        trunk = self.system.model.trunk(self._collate(own, [None] * len(own)).batch, record=True)
        if len(own) == len(sources):
            return trunk
        examples = torch.tensor([distinct[key][0] for key in keys])
        lengths = torch.tensor([sum(map(len, key)) for key in distinct])
        places = torch.arange(int(lengths.sum())).split(lengths.tolist())
        tokens = torch.cat([places[number] for number in examples.tolist()])
        return trunk.repeated(tokens.to(self.system.device), examples.to(self.system.device))

    def _begin(self, questions: Sequence[Question], decoder: Decoder) -> list[Pending]:
        model, names = self.system.model, list(self.system.tasks)
        sources = [question.source for question in questions]
        trunk = self._trunk(sources)
        logits = self._possible(model.router(trunk.features).logits, [bool(source.choices) for source in sources])
        routed = torch.softmax(logits / model.router.temperature, dim=1)
        likeliest = routed.argmax(dim=1).tolist()
        chosen = [q.task or names[best] for q, best in zip(questions, likeliest, strict=True)]
        counts = [q.top_k or model.router.config.top_k for q in questions]
        weights = self._mixtures(questions, routed, counts)
        routes = _routes(self._calibrated(logits), model.ood.familiarity(trunk.features))
        rejected = [q.task is None and r.is_rejected(self.calibration) for q, r in zip(questions, routes, strict=True)]
        if self.system.config.router.on_rejection == "base":
            weights[torch.tensor(rejected, device=weights.device)] = 0.0
        # The upper layers depend on the chosen tasks, so they are planned after routing. The trunk is not run again.
        packed = self._collate(sources, chosen)
        generates = any(isinstance(self.system.tasks[name], GenerationTask) for name in chosen)
        top_k = max(counts) if all(q.weights is None for q in questions) else None
        # If all inputs go to one adapter, leave out the others, so that the result does not depend on them.
        active = [names.index(chosen[0])] if top_k == 1 and len(set(chosen)) == 1 else None
        output = model(packed.batch, weights, active, top_k, record=generates, trunk=trunk)
        pending = [Pending(*parts) for parts in zip(questions, chosen, routes, rejected, strict=True)]
        for view in packed.views:
            task, own = self.system.tasks[view.task], [pending[i] for i in view.examples.tolist()]
            if isinstance(task, GenerationTask):
                self._join(decoder, task, packed.batch, view, output, own)
            else:
                made = task.answers(model.head(view.task), output.hidden, view, [p.question.source for p in own])
                for one, answer in zip(own, made, strict=True):
                    one.answer = answer
        return pending

    def _mixtures(self, questions: Sequence[Question], routed: Tensor, counts: Sequence[int]) -> Tensor:
        """Return mixing weights ``(inputs, adapters)``: those given, else the hinted task's, else the router's."""
        model, names = self.system.model, list(self.system.tasks)
        weights = torch.empty_like(routed)
        for count in set(counts):
            rows = torch.tensor([row for row, own in enumerate(counts) if own == count], device=routed.device)
            weights[rows] = top_k_weights(routed[rows], count)
        for row, question in enumerate(questions):
            if question.weights is not None:
                weights[row] = question.weights.to(weights)
            elif question.task is not None:
                weights[row] = model.oracle_weights(torch.tensor([names.index(question.task)]))[0].to(weights)
        return weights

    def _join(
        self, decoder: Decoder, task: GenerationTask, batch: Batch, view: TaskView, output: Output, own: list[Pending]
    ) -> None:
        """Add drafts for the examples of a generation task to the decoder."""
        model = self.system.model
        settings = [one.question.generation.get(view.task, task.config.generation) for one in own]
        is_first = torch.isin(batch.examples, view.examples) & (batch.top_lengths > 0)
        windows = is_first.nonzero().flatten().tolist()
        room = max(setting.max_new_tokens for setting in settings)
        cache = make_cache(output.recorded, batch, windows, room, model.encoder.config.num_heads)
        weights = output.weights[view.examples]
        head, vocabulary = model.head(view.task), task.vocabulary
        assert isinstance(head, LanguageModelHead)
        drafts = [
            Draft(view.task, mixture, vocabulary.start, vocabulary.end, setting)
            for mixture, setting in zip(weights, settings, strict=True)
        ]
        for one, draft in zip(own, drafts, strict=True):
            one.draft = draft
        active = (weights > 0).any(dim=0).nonzero().flatten().tolist()
        decoder.add(drafts, cache, active, task.copyable(head, output.hidden, view))


def _chunks(questions: Sequence[Question]) -> list[list[int]]:
    return split_by_tokens([question.tokens for question in questions], TOKEN_BUDGET)


def _routes(probabilities: Tensor, familiarity: Tensor) -> list[Route]:
    return [Route(row, own) for row, own in zip(probabilities.tolist(), familiarity.tolist(), strict=True)]
