"""Format predictions for callers: answers as ``transformers`` pipelines give them, and routing details."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_mtl.errors import InputError, RejectedError
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import Asked, Pending, Prediction, Route


def shown(predictor: Predictor, prediction: Prediction) -> dict[str, Any]:
    """An answer as a call gives it."""
    routing = routing_info(predictor, prediction)
    return {**answer_of(predictor, prediction), "task": prediction.task, "routing": routing}


def failed(message: str, kind: str = "validation") -> dict[str, str]:
    """What stands in place of an answer: a sentence, and a word for programs."""
    return {"error": message, "error_type": kind}


def shown_together(
    predictor: Predictor, asked: Asked, answers: Mapping[str, Mapping[str, Any]], route: Route | None
) -> dict[str, Any]:
    """The answers of several tasks to one input, under their names, and how the router would have chosen.

    Args:
        predictor: what answered.
        asked: the input.
        answers: task → its answer, or what failed.
        route: of the input; None if no task answered.
    """
    assert asked.names is not None
    refused = {name: failed(says) for name, says in asked.refused.items()}
    routing = {} if route is None else {"routing": route_info(predictor, route)}
    return {"answers": {name: refused.get(name) or answers[name] for name in asked.names}, **routing}


def shown_all(predictor: Predictor, asked: Asked, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """What a call gives for one input.

    Raises:
        InputError, RejectedError: as ``refuse``, if only one answer is wanted.
    """
    if asked.names is None:
        refuse(predictor, predictions[0])
        return shown(predictor, predictions[0])
    answers = {one.task: answer_of(predictor, one) for one in predictions}
    return shown_together(predictor, asked, answers, predictions[0].route)


def refuse(predictor: Predictor, routed: Prediction | Pending) -> None:
    """Raise an error for an input that must not be answered.

    Raises:
        InputError: its task cannot answer it.
        RejectedError: it was rejected, and ``router.on_rejection`` is ``error``.
    """
    made = isinstance(routed, Prediction)
    problem = routed.problem if made else predictor.problem(routed.question, routed.task)
    if problem is not None:
        raise InputError(problem)
    if not routed.rejected or predictor.system.config.router.on_rejection != "error":
        return
    info, needed = route_info(predictor, routed.route), predictor.calibration
    raise RejectedError(
        f"no task should answer: the likeliest, {info['predicted_task']}, has a confidence of "
        f"{info['confidence']:.3f} where {needed.threshold:.3f} is needed, and the input a familiarity of "
        f"{info['familiarity']:.3f} where {needed.familiarity:.3f} is; give a task_hint or an instruction"
    )


def routing_info(predictor: Predictor, prediction: Prediction) -> dict[str, Any]:
    """How a prediction was routed, and whether its input was rejected."""
    return {**route_info(predictor, prediction.route), "rejected": prediction.rejected}


def route_info(predictor: Predictor, route: Route) -> dict[str, Any]:
    """The likeliest task, those that come into question, why there is doubt, and all probabilities by name."""
    names = list(predictor.system.tasks)
    best = route.probabilities.index(route.confidence)
    return {
        "predicted_task": names[best],
        "confidence": route.confidence,
        "familiarity": route.familiarity,
        "doubt": route.doubt(predictor.calibration),
        "likeliest": [names[task] for task in route.likeliest],
        "probabilities": dict(zip(names, route.probabilities, strict=True)),
    }


def doubt_in_words(routing: Mapping[str, Any]) -> str:
    """What ``route_info`` says of an input that may belong to no task, as a sentence; empty if there is no doubt."""
    if routing["doubt"] == "unfamiliar":
        return "It is unlike everything that the tasks were trained on, so it is probably of none of them."
    if routing["doubt"] == "unsure":
        *first, last = (f"{name} {routing['probabilities'][name]:.2f}" for name in routing["likeliest"])
        return f"The router is unsure; likeliest: {' or '.join([', '.join(first), last] if first else [last])}."
    return ""


def answer_of(predictor: Predictor, prediction: Prediction) -> dict[str, Any]:
    """Return the answer as callers see it, with ``truncated`` if the input was not read completely."""
    truncated = {} if prediction.truncated is None else {"truncated": dict(prediction.truncated)}
    return {**predictor.system.tasks[prediction.task].shown(prediction.answer), **truncated}
