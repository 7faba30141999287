"""The Python API: ``DynamoInference`` loads a trained model and answers texts of any task."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from dynamo_mtl.checkpoint.hub import fetch, push
from dynamo_mtl.checkpoint.stored_config import used_with
from dynamo_mtl.config.system_config import SystemConfig
from dynamo_mtl.errors import ConfigError, DynamoError, RejectedError
from dynamo_mtl.inference.answers import answer_of, failed, refuse, route_info, routing_info, shown_all
from dynamo_mtl.inference.decoding import Decoder
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.request_reader import Given, Manner, RequestReader, check_choices
from dynamo_mtl.inference.requests import Asked, Pending, TextInput
from dynamo_mtl.storage import at_home, copy_folder, verify_folder
from dynamo_mtl.system import load_system
from dynamo_mtl.tasks.generation_task import GenerationTask


class DynamoInference:
    """A trained model, ready to be asked, also from several threads.

    >>> model = DynamoInference("./checkpoints/final_model", "./config.yaml")  # doctest: +SKIP
    >>> result = model.predict("I love this movie!", task_hint="sentiment")  # doctest: +SKIP
    >>> result["sentiment"]["label"]  # doctest: +SKIP
    'positive'
    >>> model(["I love this movie!", "Translate to German: a dog"])[1]["translation_text"]  # doctest: +SKIP
    'ein Hund'
    """

    def __init__(
        self, checkpoint: str | Path, config: str | Path | SystemConfig | None = None, device: str | None = None
    ) -> None:
        """Load a checkpoint.

        Args:
            checkpoint: folder written by training.
            config: settings that replace those stored in the checkpoint; or a configuration file. Of a file, only the
                settings that can change after training are used. The checkpoint decides all others.
            device: ``cpu`` or ``cuda:0``, for example. By default a GPU if there is one, else the CPU.

        Raises:
            CheckpointError: unusable checkpoint.
            ConfigError: unusable settings, or no such device.
        """
        place = _device(device)
        self.checkpoint = at_home(checkpoint)
        settings = config if isinstance(config, SystemConfig | None) else used_with(self.checkpoint, at_home(config))
        self.system, self.metadata = load_system(self.checkpoint, place, settings)
        self.predictor = Predictor(self.system, self.metadata.calibration)
        self.reader = RequestReader(self.predictor)
        self._made_from = (self.checkpoint.absolute(), settings, device)

    def __reduce__(self) -> tuple[type[DynamoInference], tuple[Path, SystemConfig | None, str | None]]:
        """Pickle the path of the checkpoint, not the weights. Unpickling loads the model from that path."""
        return type(self), self._made_from

    def loaded_anew(self) -> DynamoInference:
        """Load the checkpoint again, from the same place in the same way. Raises as the constructor does."""
        checkpoint, settings, device = self._made_from
        return type(self)(checkpoint, settings, device)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, revision: str | None = None, token: str | None = None, device: str | None = None
    ) -> DynamoInference:
        """Load a checkpoint folder, or a model from the hub.

        Args:
            name: folder, or ``owner/name``.
            revision: branch, tag or commit on the hub.
            token: access token for private models; if None, the one that is logged in, or ``HF_TOKEN``.
            device: as for the constructor.

        Raises:
            CheckpointError: ``name`` is neither a checkpoint folder nor a model on the hub, or the model is damaged.
        """
        return cls(fetch(str(name), revision, token), device=device)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Verify and copy the checkpoint that this was loaded from. Raises ``CheckpointError`` if that fails."""
        verify_folder(self.checkpoint)
        return copy_folder(self.checkpoint, Path(folder))

    def push_to_hub(
        self, name: str, private: bool = False, revision: str | None = None, token: str | None = None
    ) -> str:
        """Put the checkpoint that this was loaded from on the hub; see ``hub.push``. Returns the commit's address."""
        return push(self.checkpoint, name, private, revision, token)

    @property
    def task_names(self) -> list[str]:
        """The tasks that it was trained for."""
        return list(self.system.tasks)

    def __call__(
        self,
        inputs: Given | Iterable[Given],
        *,
        task_hint: str | None = None,
        tasks: str | Sequence[str] | None = None,
        top_k: int | None = None,
        batch_size: int = 64,
        **generation: Any,
    ) -> Any:
        """Answer one input or many, of any mix of tasks. Answers look like those of ``transformers`` pipelines.

        Args:
            inputs: a text; a mapping with ``text`` or ``question``, and optionally ``context``, ``instruction``,
                ``choices`` and ``task_hint``; or an iterable of these. A list or tuple returns a list. Any other
                iterable returns an iterator that reads ``batch_size`` inputs ahead.
            task_hint: the task that must answer inputs without a ``task_hint`` of their own.
            tasks: the tasks that must all answer every input, which is read once: names; ``group:NAME`` or ``all`` for
                those of a group or of the model that the input fits. An answer is then ``{"answers": {task: answer},
                "routing"}``.
            top_k: number of adapters to mix; the configured number if None.
            batch_size: number of inputs to answer together.
            generation: decoding settings, such as ``max_new_tokens`` or ``num_beams``, for the tasks that write text.

        Returns:
            One answer per input, such as ``{"label", "score"}``, ``{"answer", "score", "start", "end"}`` or
            ``{"translation_text", "score"}``. Each also has ``task`` and ``routing`` (see ``predict``), and
            ``truncated`` if the input was not read completely. If one of many inputs cannot be answered, it gets
            ``error`` (a sentence with its number) and ``error_type`` instead; the others are still answered.

        Raises:
            ConfigError: a task or setting does not exist, or a single input is not valid.
            InputError, RejectedError: for a single input, as in ``predict``.
        """
        manner = self.reader.manner(task_hint, tasks, top_k, generation)
        if isinstance(inputs, str | Mapping):
            asked = self.reader.read(cast("Given", inputs), manner)
            return shown_all(self.predictor, asked, self.predictor.answer(asked.questions))
        if not isinstance(inputs, Iterable) or hasattr(inputs, "columns"):
            raise ConfigError(
                f"an input should be a text or a mapping, or many of them; found {type(inputs).__name__}; of a table "
                "give a column as a list, or its rows as mappings (to_dict('records'))"
            )
        answers = (
            answer
            for first, batch in _batches(inputs, batch_size)
            for answer in self._answer_each(batch, first, manner)
        )
        return list(answers) if isinstance(inputs, list | tuple) else answers

    def predict(
        self,
        text: str,
        *,
        context: str | None = None,
        instruction: str | None = None,
        choices: Sequence[str] | None = None,
        task_hint: str | None = None,
        tasks: str | Sequence[str] | None = None,
        top_k: int | None = None,
        return_routing_info: bool = False,
        **generation: Any,
    ) -> dict[str, Any]:
        """Answer one text.

        Args:
            text: what to work on; for question answering the question.
            context: the passage that a question is about.
            instruction: what to do with the text, in words.
            choices: the options to choose from, two or more; such an input is sent to a task of multiple choice.
            task_hint: the task that must answer; the router chooses if None.
            tasks: the tasks that must all answer, as in a call.
            top_k: how many adapters to mix; as configured if None.
            return_routing_info: add ``routing_info`` with the predicted task, all probabilities, and ``rejected``:
                whether the input probably belongs to no task, since the router is unsure or knows no similar input.
            generation: decoding settings, such as ``max_new_tokens`` or ``num_beams``, for the tasks that write text.

        Returns:
            ``{task: answer}``, with ``routing_info`` if asked for. With ``tasks``, an answer under each name.

        Raises:
            ConfigError: no such task or setting.
            InputError: the task that answers needs a passage and there is none, or cannot use the decoding settings.
            RejectedError: the input was rejected, and ``router.on_rejection`` is ``error``.
        """
        manner = self.reader.manner(task_hint, tasks, top_k, generation)
        given = {"text": text, "context": context, "instruction": instruction, "choices": choices}
        asked = self.reader.read(given, manner)
        predictions = self.predictor.answer(asked.questions)
        if asked.names is None:
            refuse(self.predictor, predictions[0])
        result: dict[str, Any] = {name: failed(says) for name, says in asked.refused.items()}
        result |= {prediction.task: answer_of(self.predictor, prediction) for prediction in predictions}
        if asked.names is not None:
            result = {name: result[name] for name in asked.names}
        if return_routing_info:
            result["routing_info"] = routing_info(self.predictor, predictions[0])
        return result

    def predict_table(
        self,
        data: Any,
        *,
        columns: Mapping[str, str] | None = None,
        tasks: str | Sequence[str] | None = None,
        task_hint: str | None = None,
        top_k: int | None = None,
        probabilities: bool = False,
        prefix: str = "",
        **generation: Any,
    ) -> Any:
        """Answer every row of a table, as ``dynamo predict --input`` does for files.

        Args:
            data: a pandas data frame, a list of mappings, or another iterable of mappings, of any length.
            columns: part of an input (``text``, ``context``, ``instruction``, ``choices``, ``task_hint``) → the column
                that holds it. What is not given is found by name.
            tasks: the tasks that all answer every row, as in a call; the router chooses one for each row if None.
            task_hint: the task that answers rows that name none.
            top_k: number of adapters to mix; the configured number if None.
            probabilities: add the probabilities of labels, and of tasks where the router chooses.
            prefix: in front of the names of the new columns.
            generation: decoding settings, for the tasks that write text.

        Returns:
            A data frame, a list, or an iterator, as given, whose rows also have ``task``, ``answer``, ``score``,
            ``confidence``, ``rejected``, and ``error`` for a row without an answer; with ``tasks``, an answer under
            each name. See ``bulk/answer_cells.py``.

        Raises:
            ConfigError: no column is known to hold the texts, or a task or setting does not exist.
        """
        from dynamo_mtl.inference.bulk.table import TableRequest, answer_table

        request = TableRequest(columns or {}, tasks, task_hint, top_k, probabilities, prefix, generation)
        return answer_table(self, data, request)

    def stream(
        self,
        text: str,
        *,
        context: str | None = None,
        instruction: str | None = None,
        task_hint: str | None = None,
        top_k: int | None = None,
        **generation: Any,
    ) -> Iterator[str]:
        """Stream the answer of a task that writes text, piece by piece. The pieces joined are the whole answer.

        Takes the arguments of ``predict``, except ``return_routing_info``. Decoding is greedy unless
        ``sampling_temperature`` is given. Beam search cannot stream, since its best beam is known only at the end.

        Raises:
            ConfigError: as in ``predict``; also for several beams, or a task that does not write text.
            InputError, RejectedError: as in ``predict``.
        """
        self.reader.check(task_hint, top_k)
        if generation.setdefault("num_beams", 1) != 1:
            raise ConfigError("num_beams: an answer of several beams is known only at its end; stream with num_beams=1")
        given = {"text": text, "context": context, "instruction": instruction}
        question = self.reader.question(given, task_hint, top_k, generation)
        decoder = Decoder(self.system.model)
        pending = self.predictor.begin([question], decoder)[0]
        refuse(self.predictor, pending)
        if pending.draft is None:
            writers = [name for name, task in self.system.tasks.items() if isinstance(task, GenerationTask)]
            raise ConfigError(f"task '{pending.task}' writes no text to stream; those that do: {', '.join(writers)}")
        return self._pieces(pending, decoder)

    def route(
        self,
        text: str,
        *,
        context: str | None = None,
        instruction: str | None = None,
        choices: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Route a text without answering it. Only the layers below the adapters run.

        Returns:
            A dictionary with ``task``, None if the text is rejected; ``predicted_task``, the likeliest task in any
            case; calibrated ``confidence`` and ``probabilities``; ``familiarity``, the share of known inputs that are
            at least as unusual; ``thresholds``, the confidence and familiarity below which inputs are rejected;
            ``doubt``, why this one is: ``unsure``, ``unfamiliar`` or None; and ``likeliest``, the tasks that come into
            question.
        """
        check_choices(choices)
        for name, value in (("text", text), ("context", context), ("instruction", instruction)):
            if not isinstance(value, str) and (name == "text" or value is not None):
                raise ConfigError(f"input: {name} should be a text, found {type(value).__name__}")
        route = self.predictor.route([TextInput(text, context, instruction, choices)])[0]
        info, calibration = route_info(self.predictor, route), self.predictor.calibration
        task = None if route.is_rejected(calibration) else info["predicted_task"]
        thresholds = {"confidence": calibration.threshold, "familiarity": calibration.familiarity}
        return {"task": task, **info, "thresholds": thresholds}

    def answer_each(self, inputs: Sequence[Given], manner: Manner) -> Iterator[dict[str, Any] | DynamoError]:
        """Answer inputs together. One that cannot be answered gets its error, and the others are still answered.

        Args:
            inputs: as of a call.
            manner: how, as ``self.reader.manner`` returns it.

        Yields:
            For each input its answer as of a call, or the error.
        """
        read: list[Asked | DynamoError] = []
        for given in inputs:
            try:
                read.append(self.reader.read(given, manner))
            except DynamoError as error:
                read.append(error)
        questions = [question for one in read if isinstance(one, Asked) for question in one.questions]
        predictions = iter(self.predictor.answer(questions))
        for one in read:
            if isinstance(one, DynamoError):
                yield one
                continue
            own = list(itertools.islice(predictions, len(one.questions)))
            try:
                yield shown_all(self.predictor, one, own)
            except DynamoError as error:
                yield error

    def _answer_each(self, batch: Sequence[Given], first: int, manner: Manner) -> Iterator[dict[str, Any]]:
        """Answers of a batch of inputs, the first of which has the number ``first``, with errors as mappings."""
        for number, made in enumerate(self.answer_each(batch, manner), start=first):
            if isinstance(made, DynamoError):
                kind = "rejected" if isinstance(made, RejectedError) else "validation"
                yield failed(f"input {number}: {made}", kind)
            else:
                yield made

    def _pieces(self, pending: Pending, decoder: Decoder) -> Iterator[str]:
        draft, task = pending.draft, self.system.tasks[pending.task]
        assert draft is not None
        assert isinstance(task, GenerationTask)
        shown = ""
        while decoder.drafts:
            self.predictor.step(decoder)
            ids = draft.beams[0][1] if draft.beams else draft.best().ids
            text = self.predictor.written(pending, ids, 0.0)[task.answer_key]
            # Hold back the end, which may still change: a character with missing bytes, or white space.
            ready = text if not draft.beams else text.rstrip("\ufffd \n\t")
            if ready.startswith(shown) and ready != shown:
                yield ready[len(shown) :]
                shown = ready


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # no such kind of device; none of this build; no such number
        said = str(error).strip().split("\n", maxsplit=1)[0]
        raise ConfigError(
            f"device: '{name}' cannot be used here ({said:.120}); use cpu, or cuda:0 for a GPU"
        ) from error


def _batches(inputs: Iterable[Any], size: int) -> Iterator[tuple[int, list[Any]]]:
    """Batches, each with the number of its first input, from 1."""
    if size < 1:
        raise ConfigError(f"batch_size: found {size}, use 1 or more")
    remaining, first = iter(inputs), 1
    while batch := list(itertools.islice(remaining, size)):
        yield first, batch
        first += len(batch)
