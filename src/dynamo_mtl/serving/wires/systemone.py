"""``POST /v1/systemone``: typed questions about a state, as ``transformers serve`` and others answer them.

The rules of requests and the formulas of confidence are those of ``transformers`` 5.23
(``decision/template_utils.py``); the form of a batch is that of ``opendecider``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dynamo_mtl.serving.handlers import Server
from dynamo_mtl.serving.http_requests import read_wire
from dynamo_mtl.serving.wires.typed_questions import State, TypedQuestion, answer_all, as_text, plan

Content = str | dict[str, Any] | list[Any]
MOST_OPTIONS = 255


class _Question(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    instructions: Content | None = Field(default=None, description="The question in words.")


class NoulQuestion(_Question):
    """Whether something is true."""

    type: Literal["noul"]
    criteria: dict[Literal["true", "false"], Content | None] | None = None

    def typed(self, name: str) -> TypedQuestion:
        """The question in a common form."""
        texts = [as_text((self.criteria or {}).get(option)) for option in ("true", "false")]
        return TypedQuestion(name, "predicate", as_text(self.instructions), ["true", "false"], texts)


class ChoiceQuestion(_Question):
    """Which of some options."""

    type: Literal["choice"]
    criteria: Annotated[dict[str, Content | None], Field(min_length=1, max_length=MOST_OPTIONS)] = Field(
        description="Options, each with what it means."
    )

    def typed(self, name: str) -> TypedQuestion:
        """The question in a common form."""
        texts = [as_text(text) for text in self.criteria.values()]
        return TypedQuestion(name, "choice", as_text(self.instructions), list(self.criteria), texts)


class ScoreQuestion(_Question):
    """Which of some ordered levels."""

    type: Literal["score"]
    criteria: Annotated[list[Content], Field(min_length=1, max_length=MOST_OPTIONS)] = Field(
        description="Levels, the lowest first."
    )

    def typed(self, name: str) -> TypedQuestion:
        """The question in a common form."""
        options = [str(number) for number in range(len(self.criteria))]
        texts = [as_text(text) for text in self.criteria]
        return TypedQuestion(name, "score", as_text(self.instructions), options, texts, are_numbered=True)


Question = Annotated[NoulQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = Field(default=None, description="Sent back; the server has one model.")
    questions: Annotated[dict[str, Question], Field(min_length=1, max_length=64)]
    assets: dict[str, Any] = Field(
        default_factory=dict, max_length=0, description="Images, of which there can be none."
    )


class SystemOneRequest(_Asked):
    """Questions about one state."""

    state: Content | None


class SystemOneBatch(_Asked):
    """The same questions about several states."""

    states: Annotated[list[Content | None], Field(min_length=1, max_length=256)]


def wire(server: Server) -> dict[str, tuple[Any, type[BaseModel]]]:
    """Path → its handler and the form of its body."""

    async def one(request: Request) -> Response:
        """Answer typed questions about a state."""
        asked = await read_wire(request, SystemOneRequest, server.config)
        [found] = await _answered(server, request, asked, [asked.state])
        return JSONResponse(found)

    async def batch(request: Request) -> Response:
        """Answer typed questions about each of some states."""
        asked = await read_wire(request, SystemOneBatch, server.config)
        results = await _answered(server, request, asked, asked.states)
        tokens = sum(result["usage"]["input_tokens"] for result in results)
        usage = {"input_tokens": tokens, "output_tokens": 0}
        return JSONResponse({"model": _model(server, asked), "results": results, "total_usage": usage})

    return {"/v1/systemone": (one, SystemOneRequest), "/v1/systemone/batch": (batch, SystemOneBatch)}


def _model(server: Server, asked: _Asked) -> str:
    return asked.model or server.config.model_name


async def _answered(server: Server, request: Request, asked: _Asked, states: list[Any]) -> list[dict[str, Any]]:
    """The response for each state."""
    model = server.model
    plans = [
        plan(one.typed(name), model.system, f"questions.{n}") for n, (name, one) in enumerate(asked.questions.items())
    ]
    found = await answer_all(server, request, model, plans, [State(state) for state in states])
    return [
        {
            "model": _model(server, asked),
            "answers": {
                one.question.name: answer(one.question, shares) for one, (shares, _) in zip(plans, own, strict=True)
            },
            "usage": {"input_tokens": sum(tokens for _, tokens in own), "output_tokens": 0},
        }
        for own in found
    ]


def answer(question: TypedQuestion, shares: list[float]) -> dict[str, Any]:
    """The answer to a question, from the probability of each option."""
    if question.kind == "predicate":
        return {"type": "noul", "noul": shares[0]}
    by_option = dict(zip(question.options, shares, strict=True))
    best = max(range(len(shares)), key=shares.__getitem__)
    confidence = choice_confidence(shares) if question.kind == "choice" else score_confidence(shares)
    common = {"confidence": confidence, "probabilities": by_option}
    if question.kind == "choice":
        return {"type": "choice", "choice": question.options[best], **common}
    legend = dict(zip(question.options, question.texts, strict=True))
    return {"type": "score", "score": mean_level(shares), "legend": legend, **common}


def mean_level(shares: list[float]) -> float:
    """The expected level, from 0."""
    return sum(level * share for level, share in enumerate(shares))


def choice_confidence(shares: list[float]) -> float:
    """How far the likeliest option is above chance: (p − 1/n) / (1 − 1/n)."""
    count = len(shares)
    return 1.0 if count == 1 else max(0.0, (max(shares) - 1 / count) / (1 - 1 / count))


def score_confidence(shares: list[float]) -> float:
    """One minus the mean distance from the likeliest level, over that of uniform shares from the middle."""
    count = len(shares)
    if count == 1:
        return 1.0
    best = max(range(count), key=shares.__getitem__)
    distance = sum(share * abs(level - best) for level, share in enumerate(shares))
    return max(0.0, 1 - distance / (sum(abs(level - (count - 1) / 2) for level in range(count)) / count))
