"""Read and validate requests: bodies within limits, strict JSON, and one sentence for every error.

An error never repeats what was sent, which may be private, or crafted to attack readers of the log.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import ClientDisconnect, Request

from dynamo_mtl.config.serving_config import ServingConfig
from dynamo_mtl.data.text_files import encodes
from dynamo_mtl.serving.http_errors import RequestError


class Input(BaseModel):
    """One input that is more than a text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str | None = Field(default=None, description="What to work on.")
    question: str | None = Field(default=None, description="In place of `text`: what is asked about the context.")
    context: str | None = Field(default=None, description="The passage that a question is about.")
    text_pair: str | None = Field(default=None, description="The second of two texts; another name of `context`.")
    instruction: str | None = Field(default=None, description="What to do with the text, in words.")
    choices: Annotated[list[str], Field(min_length=2, max_length=1000)] | None = Field(
        default=None, description="The options to choose from."
    )
    task_hint: str | None = Field(default=None, description="The task that must answer; the router chooses if null.")

    @model_validator(mode="after")
    def _one_text(self) -> Input:
        if (self.text is None) == (self.question is None):
            raise ValueError("expected one of text and question")
        if self.context is not None and self.text_pair is not None:
            raise ValueError("expected one of context and text_pair")
        return self

    @property
    def second(self) -> str | None:
        """The context, under either name."""
        return self.context if self.text_pair is None else self.text_pair

    @property
    def characters(self) -> int:
        """Number of characters in all parts of the input."""
        parts = (self.text, self.question, self.second, self.instruction, *(self.choices or ()))
        return sum(len(part or "") for part in parts)


class Parameters(BaseModel):
    """Decoding settings of one request, for the tasks that write text; the model's own if not given."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    max_new_tokens: int | None = Field(default=None, ge=1)
    min_new_tokens: int | None = Field(default=None, ge=0)
    num_beams: int | None = Field(default=None, ge=1)
    sampling_temperature: float | None = Field(default=None, ge=1e-3, le=100)
    length_penalty: float | None = Field(default=None, ge=-10, le=10)
    no_repeat_ngram_size: int | None = Field(default=None, ge=0, le=100)

    @property
    def given(self) -> dict[str, Any]:
        """The settings that the client set."""
        return self.model_dump(exclude_none=True)


class RouteRequest(BaseModel):
    """One input or several, of any tasks in any mix."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: str | Input | Annotated[list[str | Input], Field(min_length=1)] = Field(
        description="A text, or an object with `text` or `question`, or a list of them.",
        examples=["A wonderful film.", [{"question": "Who sang?", "context": "Ada sang."}, "Translate: a dog"]],
    )

    @property
    def items(self) -> list[Input]:
        """The inputs, as objects."""
        given = self.inputs if isinstance(self.inputs, list) else [self.inputs]
        return [Input(text=one) if isinstance(one, str) else one for one in given]


R = TypeVar("R", bound=RouteRequest)


class PredictRequest(RouteRequest):
    """Inputs to answer."""

    task_hint: str | None = Field(default=None, description="The task that must answer inputs that name none.")
    tasks: str | Annotated[list[str], Field(min_length=1, max_length=1000)] | None = Field(
        default=None,
        description="The tasks that must all answer every input: names; `group:NAME` or `all` for those that it fits.",
        examples=["all", ["sentiment", "topic"]],
    )
    top_k: int | None = Field(default=None, ge=1, description="How many adapters to mix; the model's choice if null.")
    parameters: Parameters = Parameters()
    deadline_seconds: float | None = Field(
        default=None, gt=0, description="When the answer is of no use any more; at most the server's own deadline."
    )


class FeedbackRequest(RouteRequest):
    """Inputs, and the task that is right for all of them."""

    task: str = Field(description="The task that should answer them.", examples=["sentiment"])


async def read_body(request: Request, config: ServingConfig) -> bytes:
    """Read the body, and count its bytes as they arrive.

    Raises:
        RequestError: the headers do not announce plain JSON (415), or the body is too long (413), too late (408) or
            incomplete (400).
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise RequestError(415, "media_type", "the body should be application/json; set the header Content-Type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(415, "media_type", "the body should not be compressed; leave out Content-Encoding")
    limit = config.max_body_bytes
    too_large = RequestError(413, "too_large", f"the body has more than {limit} bytes; send fewer inputs at a time")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:18]) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(config.body_seconds):
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        # The rest may still arrive, so the connection cannot be reused.
        message = f"the body did not arrive within {config.body_seconds:g} seconds"
        raise RequestError(408, "too_slow", message, {"Connection": "close"}) from None
    except ClientDisconnect:
        raise RequestError(400, "json", "the body is incomplete") from None
    return bytes(body)


def read_json(body: bytes) -> Any:
    """Parse strict JSON: valid UTF-8, no ``NaN`` or ``Infinity``, no repeated keys, no numbers that are too large.

    Raises:
        RequestError: the body is not such JSON (400), or has repeated keys or numbers that are too large (422).
    """
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except RequestError:
        raise
    except UnicodeDecodeError:
        raise RequestError(400, "json", "the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise RequestError(400, "json", f"the body is not JSON: {error.msg}, at character {error.pos}") from None
    except RecursionError:
        raise RequestError(400, "json", "the body is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RequestError(422, "validation", "the body has an object with a key that is repeated")
    return found


def _constant(_: str) -> float:
    raise RequestError(400, "json", "the body is not JSON: NaN and Infinity are no numbers there")


def _float(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise RequestError(422, "validation", "the body has a number that is too large")
    return value


def _int(digits: str) -> int:
    if len(digits) > 18:
        raise RequestError(422, "validation", "the body has a number that is too large")
    return int(digits)


Form = TypeVar("Form", bound=BaseModel)


async def read_wire(request: Request, form: type[Form], config: ServingConfig) -> Form:
    """Read and validate the body of a request in the form of another server.

    Raises:
        RequestError: as ``read_body``, ``read_json`` and ``validated``.
    """
    value = read_json(await read_body(request, config))
    try:
        if not encodes(json.dumps(value, ensure_ascii=False)):
            raise _invalid("body: has half of a surrogate pair, which is no character")
    except RecursionError:
        raise RequestError(400, "json", "the body is nested too deeply") from None
    try:
        return form.model_validate(value)
    except ValidationError as error:
        schema = form.model_json_schema()
        forms = [schema, *schema.get("$defs", {}).values()]
        found = max(error.errors(include_input=False, include_url=False), key=lambda e: len(e["loc"]))
        known = {name for one in forms for name in one.get("properties", {})}
        path = [part for part in found["loc"] if isinstance(part, int) or part in known]
        if found["type"] == "extra_forbidden":
            raise _invalid(f"{'.'.join(map(str, path)) or 'body'}: has an unknown key") from None
        says = found["msg"].removeprefix("Value error, ")
        if found["type"] == "union_tag_invalid":  # its message repeats what was sent
            says = f"type should be one of {found.get('ctx', {}).get('expected_tags')}"
        raise _invalid(f"{'.'.join(map(str, path)) or 'body'}: {says[:1].lower()}{says[1:]}") from None


def validated(model: type[R], value: Any, config: ServingConfig) -> R:
    """Validate a request and check its limits.

    Raises:
        RequestError: 422, with the place of the error and what is expected there.
    """
    try:
        found = model.model_validate(value)
    except ValidationError as error:
        raise RequestError(422, "validation", _sentence(error, model)) from None
    items = found.items
    if len(items) > config.max_items:
        raise _invalid(f"inputs: {len(items)} of them; send at most {config.max_items} at a time")
    for number, item in enumerate(items):
        where = f"inputs.{number}" if isinstance(found.inputs, list) else "inputs"
        if item.characters > config.max_characters:
            raise _invalid(f"{where}: {item.characters} characters; at most {config.max_characters} are read")
        for name in Input.model_fields:
            given = getattr(item, name) or ""
            if not encodes(given if isinstance(given, str) else "".join(given)):
                raise _invalid(f"{where}.{name}: has half of a surrogate pair, which is no character")
    if isinstance(found, PredictRequest):
        for name, given in (("task_hint", found.task_hint or ""), ("tasks", found.tasks or "")):
            if not encodes("".join(given)):
                raise _invalid(f"{name}: has half of a surrogate pair, which is no character")
        for name, limit in (
            ("max_new_tokens", config.max_new_tokens),
            ("min_new_tokens", config.max_new_tokens),
            ("num_beams", config.max_beams),
        ):
            if (getattr(found.parameters, name) or 0) > limit:
                raise _invalid(f"parameters.{name}: at most {limit} here")
    return found


def _invalid(message: str) -> RequestError:
    return RequestError(422, "validation", message)


def _sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe the most relevant error and its place, in known names only, without quoting what was sent."""
    # In a union, the deepest error belongs to the type that the client meant.
    errors = error.errors(include_input=False, include_url=False)
    found = max(errors, key=lambda e: (len(e["loc"]), e["type"] in ("value_error", "extra_forbidden")))
    known = {*model.model_fields, *Input.model_fields, *Parameters.model_fields}
    path = [part for part in found["loc"] if isinstance(part, int) or part in known]
    place = ".".join(map(str, path)) or "body"
    if found["type"] == "extra_forbidden":
        section = {"inputs": Input, "parameters": Parameters}.get(str(found["loc"][0]), model)
        holder = ".".join(map(str, path)) if section is not model else "body"
        return f"{holder}: has an unknown key; known: {', '.join(section.model_fields)}"
    if path[:1] == ["inputs"] and not any(part in Input.model_fields for part in path[1:]):
        says = found["msg"].removeprefix("Value error, ") if found["type"] == "value_error" else None
        return f"{place}: {says or 'should be a text, an object with text or question, or a list of them'}"
    return f"{place}: {found['msg'][:1].lower()}{found['msg'][1:]}"
