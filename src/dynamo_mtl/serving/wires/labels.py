"""``POST /predict`` as text-embeddings-inference answers it, and ``POST /classify`` as vLLM does.

The router chooses among the tasks of labels; ``/predict/TASK`` names one.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.inference.request_reader import Given
from dynamo_mtl.inference.requests import Prediction
from dynamo_mtl.serving.handlers import Server
from dynamo_mtl.serving.http_errors import RequestError
from dynamo_mtl.serving.http_requests import read_wire
from dynamo_mtl.system import System

MOST = 1024
"""Most texts in a request."""
LEAST = 1e-12
"""Smallest probability that has a raw score."""


class HubParameters(BaseModel):
    """What ``InferenceClient.text_classification`` sends beside the text."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
    top_k: int | None = Field(default=None, ge=1)


class LabelRequest(BaseModel):
    """Texts to label, in the form of text-embeddings-inference."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    inputs: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=2)]
        | Annotated[list[Annotated[list[str], Field(min_length=1, max_length=2)]], Field(min_length=1, max_length=MOST)]
    ) = Field(description="A text, a pair of texts, or a list of lists of one or two texts.")
    raw_scores: bool = Field(default=False, description="Give logarithms of probabilities, or of odds, in their place.")
    truncate: bool = Field(default=False, description="Has no effect: long texts are read in windows.")
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    parameters: HubParameters | None = Field(default=None, description="As clients of the hub send them.")


class ClassifyRequest(BaseModel):
    """Texts to label, in the form of vLLM."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = None
    input: str | Annotated[list[str], Field(min_length=1, max_length=MOST)]
    user: str | None = None


def wire(server: Server) -> dict[str, tuple[Any, type[BaseModel]]]:
    """Path → its handler and the form of its body."""

    async def predict(request: Request) -> Response:
        """The labels of texts with their scores, the best first."""
        asked, model = await read_wire(request, LabelRequest, server.config), server.model
        given, is_batch = asked.inputs, False
        if isinstance(given, list) and isinstance(given[0], list):
            sequences, is_batch = [list(one) for one in given], True
        else:
            sequences = [given] if isinstance(given, list) else [[given]]
        options = asked.parameters or HubParameters()
        raw = asked.raw_scores or options.function_to_apply == "none"
        scored = [
            _scored(model.system, prediction, raw)[: options.top_k]
            for prediction, _ in await _labelled(
                server, request, model, [_input([str(text) for text in one]) for one in sequences]
            )
        ]
        # Clients of the hub expect a list for each text, also for a single one.
        return JSONResponse(scored if is_batch or asked.parameters is not None else scored[0])

    async def classify(request: Request) -> Response:
        """The labels of texts, in the form of vLLM."""
        asked, model = await read_wire(request, ClassifyRequest, server.config), server.model
        texts = asked.input if isinstance(asked.input, list) else [asked.input]
        found = await _labelled(server, request, model, texts)
        data: list[dict[str, Any]] = []
        for number, (prediction, _) in enumerate(found):
            scored = _scored(model.system, prediction, raw=False)
            by_label = {one["label"]: one["score"] for one in scored}
            names = [name for name in model.system.tasks[prediction.task].output_names() if name in by_label]
            probabilities = [by_label[name] for name in names] or list(by_label.values())
            best = scored[0]["label"]
            data.append({"index": number, "label": best, "probs": probabilities, "num_classes": len(probabilities)})
        tokens = sum(read for _, read in found)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
        return JSONResponse(
            {"id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": server.started,
             "model": asked.model or server.config.model_name, "data": data, "usage": usage}
        )  # fmt: skip

    return {
        "/predict": (predict, LabelRequest), "/predict/{task}": (predict, LabelRequest),
        "/classify": (classify, ClassifyRequest), "/classify/{task}": (classify, ClassifyRequest),
    }  # fmt: skip


def _input(sequence: list[str]) -> Given:
    return sequence[0] if len(sequence) == 1 else {"text": sequence[0], "context": sequence[1]}


async def _labelled(
    server: Server, request: Request, model: DynamoInference, inputs: Sequence[Given]
) -> list[tuple[Prediction, int]]:
    """Answers of tasks that give labels or a number, each with the tokens that were read.

    Raises:
        RequestError: the task in the path gives none, or an input is routed to one that gives none.
    """
    system = model.system
    fitting = [name for name, task in system.tasks.items() if task.decides not in (None, "choice")]
    name = request.path_params.get("task")
    if name is not None and name not in fitting:
        raise RequestError(404, "not_found", f"no such task of labels; known: {', '.join(fitting) or 'none'}")
    found = await server.ask(request, model, [(given, name) for given in inputs])
    other = next((one.task for one, _ in found if one.task not in fitting), None)
    if other is not None:
        raise RequestError(
            422, "validation",
            f"an input was routed to the task '{other}', which gives no labels; name one in the path, as in "
            f"/predict/TASK: {', '.join(fitting) or 'none'}",
        )  # fmt: skip
    return found


def _scored(system: System, prediction: Prediction, raw: bool) -> list[dict[str, Any]]:
    """Labels with their scores, the best first."""
    task, answer = system.tasks[prediction.task], prediction.answer
    if task.decides == "value":
        return [{"label": task.name, "score": answer["value"]}]
    shares: dict[str, float] = dict(answer["probabilities"])
    if raw:
        odds = task.decides == "labels"
        shares = {
            name: math.log(max(share, LEAST)) - (math.log(max(1 - share, LEAST)) if odds else 0.0)
            for name, share in shares.items()
        }
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    return [{"label": name, "score": share} for name, share in ranked]
