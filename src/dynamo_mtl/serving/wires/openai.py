"""``POST /v1/decisions`` and ``GET /v1/models`` in the forms of OpenAI's interface (``openai`` 3.57)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dynamo_mtl.serving.handlers import Server
from dynamo_mtl.serving.http_errors import RequestError
from dynamo_mtl.serving.http_requests import read_wire
from dynamo_mtl.serving.wires.systemone import MOST_OPTIONS, choice_confidence, mean_level, score_confidence
from dynamo_mtl.serving.wires.typed_questions import State, TypedQuestion, answer_all, as_text, plan

DECISIONS, MODELS = "/v1/decisions", "/v1/models"
PATHS = (DECISIONS, MODELS)
"""How the routes begin whose errors have OpenAI's form."""


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Text(_Form):
    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = None


class _Json(_Form):
    type: Literal["input_json"]
    data: dict[str, Any] | list[Any]


Parts = str | list[Annotated[_Text | _Json, Field(discriminator="type")]]


class _Question(_Form):
    name: str | None = Field(default=None, description="A task, or a word of the client's own.")
    instructions: Parts

    @property
    def words(self) -> str:
        """The question as text."""
        return _joined(self.instructions)


class Predicate(_Question):
    """Whether something is true."""

    type: Literal["predicate"]

    def typed(self) -> TypedQuestion:
        """The question in a common form."""
        return TypedQuestion(self.name, "predicate", self.words, ["true", "false"], ["", ""])


class Option(_Form):
    """One of the choices."""

    value: str | bool
    description: str | None = None


class Choice(_Question):
    """Which of some options."""

    type: Literal["choice"]
    choices: Annotated[list[Option], Field(min_length=2, max_length=MOST_OPTIONS)]

    def typed(self) -> TypedQuestion:
        """The question in a common form."""
        names = [one.value if isinstance(one.value, str) else str(one.value).lower() for one in self.choices]
        return TypedQuestion(self.name, "choice", self.words, names, [one.description or "" for one in self.choices])


class Level(_Form):
    """One of the levels."""

    label: str
    description: str | None = None


class Score(_Question):
    """Which of some ordered levels."""

    type: Literal["score"]
    levels: Annotated[list[Level], Field(min_length=1, max_length=MOST_OPTIONS)]

    def typed(self) -> TypedQuestion:
        """The question in a common form."""
        labels, texts = [one.label for one in self.levels], [one.description or "" for one in self.levels]
        return TypedQuestion(self.name, "score", self.words, labels, texts)


class DecisionRequest(_Form):
    """Questions about an input."""

    input: str | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=1024)] = Field(
        description="A text, or messages, whose texts are read one after another."
    )
    model: str
    questions: Annotated[
        list[Annotated[Predicate | Choice | Score, Field(discriminator="type")]], Field(min_length=1, max_length=400)
    ]
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: str | None = None


def wire(server: Server) -> dict[str, tuple[Any, type[BaseModel]]]:
    """Path → its handler and the form of its body."""

    async def decisions(request: Request) -> Response:
        """Answer typed questions about an input, in the form of OpenAI."""
        asked = await read_wire(request, DecisionRequest, server.config)
        model, state = server.model, asked.input if isinstance(asked.input, str) else _conversation(asked.input)
        plans = [plan(one.typed(), model.system, f"questions.{n}") for n, one in enumerate(asked.questions)]
        [found] = await answer_all(server, request, model, plans, [State(state)])
        answers = [
            _answer(one, planned.question, shares)
            for one, planned, (shares, _) in zip(asked.questions, plans, found, strict=True)
        ]
        tokens = sum(read for _, read in found)
        usage = {
            "input_tokens": tokens, "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
            "output_tokens": 0, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": tokens,
        }  # fmt: skip
        return JSONResponse({"model": asked.model, "answers": answers, "usage": usage})

    return {DECISIONS: (decisions, DecisionRequest)}


def models(server: Server) -> Any:
    """The handler of ``MODELS``."""

    async def listed(request: Request) -> Response:
        """The model that is served, in the form of OpenAI."""
        made = {"id": server.config.model_name, "object": "model", "created": server.started, "owned_by": "dynamo"}
        name = request.path_params.get("model")
        if name is None:
            return JSONResponse({"object": "list", "data": [made]})
        if name != server.config.model_name:
            raise RequestError(404, "not_found", f"no such model; there is {server.config.model_name}")
        return JSONResponse(made)

    return listed


def failure(said: RequestError, request_id: str) -> Response:
    """An error in OpenAI's form, with the fields of ours beside it."""
    error = {"message": said.message, "type": said.error_type, "param": None, "code": None}
    content = {"error": error, "error_type": said.error_type, "request_id": request_id}
    return JSONResponse(content, said.status, said.headers)


def _answer(asked: Predicate | Choice | Score, question: TypedQuestion, shares: list[float]) -> dict[str, Any]:
    named = {"name": question.name, "type": asked.type}
    if isinstance(asked, Predicate):
        return {**named, "probability": shares[0]}
    if isinstance(asked, Choice):
        best = asked.choices[max(range(len(shares)), key=shares.__getitem__)].value
        each = [{"value": one.value, "probability": p} for one, p in zip(asked.choices, shares, strict=True)]
        return {**named, "choice": best, "confidence": choice_confidence(shares), "probabilities": each}
    each = [
        {"label": one.label, "value": level, "probability": share}
        for level, (one, share) in enumerate(zip(asked.levels, shares, strict=True))
    ]
    return {**named, "score": mean_level(shares), "confidence": score_confidence(shares), "probabilities": each}


def _joined(parts: Parts) -> str:
    if isinstance(parts, str):
        return parts
    return "\n".join(one.text if isinstance(one, _Text) else as_text(one.data) for one in parts)


def _conversation(messages: Sequence[dict[str, Any]]) -> str:
    """The texts of messages, calls and their outputs, one after the other; who speaks is said if several do."""
    said: list[tuple[str, str]] = []
    for number, message in enumerate(messages):
        kind = message.get("type", "message")
        keys = {"message": "content", "function_call": "arguments", "function_call_output": "output",
               "custom_tool_call": "input", "custom_tool_call_output": "output"}  # fmt: skip
        content = message.get(keys[kind]) if isinstance(kind, str) and kind in keys else None
        if isinstance(content, list):
            content = [_part(part) for part in content]
            content = None if None in content else "\n".join(map(str, content))
        if not isinstance(content, str):
            raise RequestError(422, "validation", f"input.{number}: should be a message, call or output with text")
        speaker = message.get("role") if kind == "message" else message.get("name") or "tool"
        said.append((str(speaker), content))
    if len(said) == 1:
        return said[0][1]
    return "\n".join(f"{speaker}: {text}" for speaker, text in said)


def _part(part: Any) -> str | None:
    """Text of a part of a message; None if it has none, as an image."""
    if not isinstance(part, dict):
        return None
    if part.get("type") == "input_json":
        return as_text(part.get("data"))
    text = part.get("text") if part.get("type") in ("input_text", "output_text") else part.get("refusal")
    return text if isinstance(text, str) else None
