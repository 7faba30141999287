"""The one way to run a model: texts in, routed answers out.

``Predictor`` works on lists and mixes tasks freely; ``DynamoInference`` is its friendly face for single texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynamo_mtl.data.batch import split_by_tokens
from dynamo_mtl.errors import ConfigError, RejectedError, did_you_mean
from dynamo_mtl.inference.generation import Decoder, Draft, generate, make_cache
from dynamo_mtl.inference.system import System, SystemConfig, load_system, read_system_config
from dynamo_mtl.model.batch import Batch
from dynamo_mtl.model.calibration import Calibration
from dynamo_mtl.model.dynamo import Output, Trunk
from dynamo_mtl.model.heads import LanguageModelHead
from dynamo_mtl.model.packing import to_device
from dynamo_mtl.model.router import Routing, top_k_weights
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource, PackedExamples, TaskView
from dynamo_mtl.tasks.generation_task import GenerationTask
from dynamo_mtl.tasks.task import Answer

TOKEN_BUDGET = 8192
"""Most source tokens in one forward pass."""


@dataclass(frozen=True)
class TextInput:
    """What a user asks: a text, perhaps with a context or an instruction."""

    text: str
    context: str | None = None
    instruction: str | None = None


@dataclass(frozen=True)
class Route:
    """Where an input belongs."""

    probabilities: list[float]
    """The router's calibrated probability of every task, in the order of ``System.tasks``."""
    familiarity: float
    """Share of known inputs that are at least as unusual: near 0 for an input of no task."""

    @property
    def confidence(self) -> float:
        """Probability of the likeliest task."""
        return max(self.probabilities)

    def is_rejected(self, calibration: Calibration) -> bool:
        """Whether no task should answer: none is sure enough, or the input is like none that is known."""
        return self.confidence < calibration.threshold or self.familiarity < calibration.familiarity


@dataclass(frozen=True)
class Prediction:
    """A routed answer. ``answer`` belongs to ``task``: its adapter, head and vocabulary made it."""

    task: str
    answer: Answer
    route: Route
    rejected: bool = False
    """Whether the input is likely to be one of no task, so that the answer is a guess."""


class Predictor:
    """Runs a system over lists of inputs, mixed tasks in one forward pass."""

    def __init__(self, system: System, calibration: Calibration | None = None) -> None:
        """Args: what is run; how its confidence is read, as it is if None."""
        self.system = system
        self.calibration = calibration or Calibration()

    @torch.inference_mode()
    def read(self, inputs: Sequence[TextInput], reader: Callable[[Batch, Trunk], Tensor]) -> Tensor:
        """Run the trunk alone and collect what ``reader`` makes of it, a row for every input, on the CPU.

        Args:
            inputs: texts of any tasks.
            reader: a batch and its trunk → ``(examples, …)``.
        """
        self.system.model.eval()
        rows: dict[int, Tensor] = {}
        for chunk, sources in self._chunks(inputs):
            packed = self._collate(sources, [None] * len(chunk))
            found = reader(packed.batch, self.system.model.trunk(packed.batch)).cpu()
            rows.update(zip(chunk, found, strict=True))
        return torch.stack([rows[index] for index in range(len(inputs))])

    def route(self, inputs: Sequence[TextInput]) -> list[Route]:
        """Where every input belongs; only what the router reads is computed."""
        router = self.system.model.router
        if not inputs:
            return []
        return _routes(self.read(inputs, lambda _, trunk: self._decide(router(trunk.features), trunk)))

    @torch.inference_mode()
    def predict(
        self, inputs: Sequence[TextInput], tasks: Sequence[str | None] | None = None, weights: Tensor | None = None
    ) -> list[Prediction]:
        """Route and answer.

        Args:
            inputs: texts of any tasks, in any mix.
            tasks: for each input the task that must answer, or None to let the router choose.
            weights: ``(inputs, adapters)`` mixing weights to use instead of one adapter or the router's choice; heads
                are those of ``tasks``, all of which are then needed.
        """
        self.system.model.eval()
        hints = list(tasks) if tasks is not None else [None] * len(inputs)
        if self.system.config.model.adapters != "routed" and None in hints:
            raise ConfigError("task_hint: this model was trained without a router (model.adapters), so name the task")
        results: dict[int, Prediction] = {}
        for chunk, sources in self._chunks(inputs):
            given = weights[chunk] if weights is not None else None
            made = self._predict_chunk(sources, [hints[i] for i in chunk], given)
            results.update(zip(chunk, made, strict=True))
        return [results[index] for index in range(len(inputs))]

    def _decide(self, routing: Routing, trunk: Trunk) -> Tensor:
        """Calibrated probabilities and, in the last column, the familiarity: ``(examples, adapters + 1)``."""
        model = self.system.model
        probabilities = self.calibration.probabilities(routing.logits / model.router.temperature)
        return torch.cat([probabilities, model.novelty.familiarity(trunk.features)[:, None]], dim=1)

    def _chunks(self, inputs: Sequence[TextInput]) -> list[tuple[list[int], list[EncodedSource]]]:
        sources = [self.system.source.encode(i.text, i.context, i.instruction) for i in inputs]
        lengths = [sum(len(w.ids) for w in source.windows) for source in sources]
        return [(group, [sources[i] for i in group]) for group in split_by_tokens(lengths, TOKEN_BUDGET)]

    def _collate(self, sources: Sequence[EncodedSource], tasks: Sequence[str | None]) -> PackedExamples:
        examples: list[EncodedExample] = []
        for source, name in zip(sources, tasks, strict=True):
            if name is None:
                examples.append(EncodedExample(0, [w.ids for w in source.windows]))
            else:
                examples.append(self.system.tasks[name].unanswered(source, 0))
        return to_device(self.system.collate(examples), self.system.device)

    def _trunk(self, sources: Sequence[EncodedSource]) -> Trunk:
        """The layers below the adapters, once for a source that is there several times, as for several tasks."""
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

    def _predict_chunk(
        self, sources: Sequence[EncodedSource], hints: Sequence[str | None], given: Tensor | None
    ) -> list[Prediction]:
        model, names = self.system.model, list(self.system.tasks)
        trunk = self._trunk(sources)
        routing = model.router(trunk.features)
        top_k = model.router.config.top_k if given is None else None
        weights = top_k_weights(routing.weights, model.router.config.top_k).clone()
        chosen = [
            names[best] if hint is None else hint
            for hint, best in zip(hints, routing.weights.argmax(dim=1).tolist(), strict=True)
        ]
        for row, hint in enumerate(hints):
            if hint is not None:
                weights[row] = model.told(torch.tensor([names.index(hint)]))[0].to(weights)
        if given is not None:
            weights = given.to(weights)
        routes = _routes(self._decide(routing, trunk))
        rejected = [hint is None and r.is_rejected(self.calibration) for hint, r in zip(hints, routes, strict=True)]
        if self.system.config.router.on_rejection == "base":
            weights[torch.tensor(rejected, device=weights.device)] = 0.0
        # What runs deeper depends on the chosen tasks, so the top is planned after routing; the trunk is not run again.
        packed = self._collate(sources, chosen)
        generates = any(isinstance(self.system.tasks[name], GenerationTask) for name in chosen)
        output = model(packed.batch, weights, top_k=top_k, record=generates, trunk=trunk)
        answers: dict[int, Answer] = {}
        decoder = Decoder(model)
        drafts: dict[int, Draft] = {}
        for view in packed.views:
            task, members = self.system.tasks[view.task], view.examples.tolist()
            if isinstance(task, GenerationTask):
                drafts.update(zip(members, self._begin(decoder, task, packed.batch, view, output), strict=True))
            else:
                own = [sources[i] for i in members]
                made = task.answers(model.head(view.task), output.hidden, view, own)
                answers.update(zip(members, made, strict=True))
        generate(decoder)
        for i, draft in drafts.items():
            task, best = self.system.tasks[draft.head], draft.best()
            assert isinstance(task, GenerationTask)
            answers[i] = task.answer(best.ids, best.log_probability / max(1, best.tokens), sources[i])
        return [Prediction(chosen[i], answers[i], routes[i], rejected[i]) for i in range(len(sources))]

    def _begin(
        self, decoder: Decoder, task: GenerationTask, batch: Batch, view: TaskView, output: Output
    ) -> list[Draft]:
        """Let the answers of a generation task's examples join a decoder."""
        settings, model = task.config.generation, self.system.model
        is_first = torch.isin(batch.examples, view.examples) & (batch.top_lengths > 0)
        windows = is_first.nonzero().flatten().tolist()
        cache = make_cache(output.recorded, batch, windows, settings.max_new_tokens, model.encoder.config.num_heads)
        weights = output.weights[view.examples]
        head, vocabulary = model.head(view.task), task.vocabulary
        assert isinstance(head, LanguageModelHead)
        drafts = [Draft(view.task, own, vocabulary.start, vocabulary.end, settings) for own in weights]
        active = (weights > 0).any(dim=0).nonzero().flatten().tolist()
        decoder.add(drafts, cache, active, task.copyable(head, output.hidden, view))
        return drafts


def _routes(decided: Tensor) -> list[Route]:
    return [Route(row[:-1], row[-1]) for row in decided.tolist()]


class DynamoInference:
    """A trained model, ready to be asked.

    >>> model = DynamoInference("./checkpoints/final_model", "./config.yaml")  # doctest: +SKIP
    >>> result = model.predict("I love this movie!", task_hint="sentiment")  # doctest: +SKIP
    >>> result["sentiment"]["label"]  # doctest: +SKIP
    'positive'
    """

    def __init__(
        self, checkpoint: str | Path, config: str | Path | SystemConfig | None = None, device: str | None = None
    ) -> None:
        """Load a checkpoint.

        Args:
            checkpoint: folder written by training.
            config: settings to use instead of those stored in the checkpoint, or the file that holds them.
            device: such as ``cpu`` or ``cuda:0``; a GPU if there is one by default.
        """
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        settings = config if isinstance(config, SystemConfig | None) else read_system_config(Path(config))
        self.system, self.metadata = load_system(Path(checkpoint), place, settings)
        self.predictor = Predictor(self.system, self.metadata.calibration)

    @property
    def task_names(self) -> list[str]:
        """The tasks that it was trained for."""
        return list(self.system.tasks)

    def predict(
        self,
        text: str,
        *,
        context: str | None = None,
        instruction: str | None = None,
        task_hint: str | None = None,
        return_routing_info: bool = False,
    ) -> dict[str, Any]:
        """Answer one text.

        Args:
            text: what to work on; for question answering the question.
            context: the passage that a question is about.
            instruction: what to do with the text, in words.
            task_hint: the task that must answer; the router chooses if None.
            return_routing_info: add ``routing_info`` with the predicted task, all probabilities, and whether the input
                was ``rejected`` as likely to be one of no task: the router is not sure, or knows nothing like it.

        Returns:
            ``{task: answer}``, with ``routing_info`` if asked for.

        Raises:
            ConfigError: no such task.
            RejectedError: a rejected input, where ``router.on_rejection`` is ``error``.
        """
        if task_hint is not None and task_hint not in self.system.tasks:
            raise ConfigError(f"task_hint: no task '{task_hint}'; {did_you_mean(task_hint, self.system.tasks)}")
        prediction = self.predictor.predict([TextInput(text, context, instruction)], [task_hint])[0]
        info = self._routing_info(prediction.route)
        if prediction.rejected and self.system.config.router.on_rejection == "error":
            needed = self.predictor.calibration
            raise RejectedError(
                f"no task should answer: the likeliest, {info['predicted_task']}, has a confidence of "
                f"{info['confidence']:.3f} where {needed.threshold:.3f} is needed, and the input a familiarity of "
                f"{info['familiarity']:.3f} where {needed.familiarity:.3f} is; give a task_hint or an instruction"
            )
        result: dict[str, Any] = {prediction.task: prediction.answer}
        if return_routing_info:
            result["routing_info"] = {**info, "rejected": prediction.rejected}
        return result

    def route(self, text: str, *, context: str | None = None, instruction: str | None = None) -> dict[str, Any]:
        """Say where a text belongs, without answering it: only the layers below the adapters run.

        Returns:
            ``task``, or None if none should answer; ``predicted_task``, the likeliest one in any case; ``confidence``
            and ``probabilities``, both calibrated; ``familiarity``, the share of known inputs that are at least as
            unusual; ``thresholds`` of confidence and familiarity, below which an input is rejected.
        """
        route = self.predictor.route([TextInput(text, context, instruction)])[0]
        info, calibration = self._routing_info(route), self.predictor.calibration
        task = None if route.is_rejected(calibration) else info["predicted_task"]
        thresholds = {"confidence": calibration.threshold, "familiarity": calibration.familiarity}
        return {"task": task, **info, "thresholds": thresholds}

    def _routing_info(self, route: Route) -> dict[str, Any]:
        best = route.probabilities.index(route.confidence)
        return {
            "predicted_task": self.task_names[best],
            "confidence": route.confidence,
            "familiarity": route.familiarity,
            "probabilities": dict(zip(self.task_names, route.probabilities, strict=True)),
        }
