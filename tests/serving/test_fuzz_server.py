"""S2: whatever is sent, no answer is a 5xx or shows a traceback, and the server goes on."""

import json
import os
import random
import string

import pytest
from tiny import answer_by_text, make_kinds_system, save_system

from dynamo_mtl.config.serving_config import FeedbackConfig

PATHS = [
    "/v1/predict",
    "/v1/route",
    "/v1/systemone",
    "/v1/systemone/batch",
    "/v1/decisions",
    "/predict",
    "/predict/sentiment",
    "/classify",
    "/v1/feedback",
    "/v1/tasks",
    "/info",
    "/metrics",
    "/health/ready",
    "/",
    "/docs",
    "//",
    "/..%2f",
    "/%00",
]
METHODS = ["POST"] * 6 + ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]
KEYS = [
    "inputs", "text", "question", "context", "instruction", "task_hint", "top_k", "parameters", "max_new_tokens",
    "num_beams", "sampling_temperature", "min_new_tokens", "deadline_seconds", "no_repeat_ngram_size", "x", "tasks",
    "state", "states", "questions", "criteria", "type", "model", "input", "levels", "choices", "label", "value",
]  # fmt: skip
DEEP = "a list in many lists"
"""Stands for one, which is put into the finished body."""
NAMES = ["topics", "aspects", "marks", "levels", "topics.waste", "aspects.x", "sentiment", "free", "a.b", ""]
TEXTS = ["", " ", "A film.", "\x00", "\u202e", "</s><mask>", "\ud800", "x" * 500, "🙂" * 40, "sentiment", "translation"]
NUMBERS = [0, 1, 2, -1, 10**17, 1.5, -0.0, 1e308, 1e-320, True, None]


def _value(rng, depth=0):
    kind = rng.random()
    if kind < 0.01:
        return DEEP
    if kind < 0.4 or depth > 3:
        return rng.choice(TEXTS)
    if kind < 0.6:
        return rng.choice(NUMBERS)
    if kind < 0.75:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(KEYS): _value(rng, depth + 1) for _ in range(rng.randrange(4))}


def _typed(rng):
    """A typed question that is nearly right."""
    kind = rng.choice(["noul", "choice", "score"])
    criteria = {
        "noul": {"true": "x"},
        "choice": {t: rng.choice([None, t]) for t in rng.sample(TEXTS, 3)},
        "score": TEXTS[:3],
    }
    more = {} if rng.random() < 0.7 else {rng.choice(KEYS): _value(rng, 2)}
    return {"type": kind, "instructions": rng.choice(TEXTS), "criteria": criteria[kind], **more}


def _decision(rng):
    kind = rng.choice(["predicate", "choice", "score"])
    options = {"predicate": {}, "choice": {"choices": [{"value": rng.choice(TEXTS)} for _ in range(3)]},
               "score": {"levels": [{"label": rng.choice(TEXTS)} for _ in range(3)]}}  # fmt: skip
    return {"type": kind, "name": rng.choice(NAMES), "instructions": rng.choice(TEXTS), **options[kind]}


QUESTIONS = {
    "/v1/systemone": lambda rng: {
        "state": _value(rng), "questions": {rng.choice(NAMES): _typed(rng) for _ in range(rng.randrange(3))},
    },
    "/v1/systemone/batch": lambda rng: {
        "states": [_value(rng) for _ in range(rng.randrange(3))], "questions": {rng.choice(TEXTS): _typed(rng)},
    },
    "/v1/decisions": lambda rng: {
        "model": "m",
        "input": rng.choice([rng.choice(TEXTS), [{"role": "user", "content": _value(rng), "type": _value(rng, 3)}]]),
        "questions": [_decision(rng) for _ in range(rng.randrange(3))],
    },
    "/predict": lambda rng: {"inputs": rng.choice([rng.choice(TEXTS), rng.sample(TEXTS, 2), [[rng.choice(TEXTS)]]])},
    "/predict/sentiment": lambda rng: {"inputs": rng.choice(TEXTS), "raw_scores": rng.choice(NUMBERS)},
    "/v1/feedback": lambda rng: {"inputs": rng.choice(TEXTS), "task": rng.choice(["sentiment", "qa", *TEXTS])},
    "/classify": lambda rng: {"input": rng.choice([rng.choice(TEXTS), rng.sample(TEXTS, 3)])},
}  # fmt: skip


def _request(rng):
    """A body that is nearly right, or bytes of any kind."""
    path = rng.choice(PATHS[:9] * 3 + PATHS)
    kind = rng.random()
    if kind < 0.25 and path in QUESTIONS:
        body = json.dumps(QUESTIONS[path](rng)).encode()
        body = body.replace(json.dumps(DEEP).encode(), b"[" * (depth := rng.choice([300, 950, 990])) + b"]" * depth)
    elif kind < 0.7:
        given = {"inputs": _value(rng, 1), **{rng.choice(KEYS): _value(rng, 2) for _ in range(rng.randrange(3))}}
        body = json.dumps(given).encode()
        if rng.random() < 0.2:
            place = rng.randrange(len(body))
            body = body[:place] + bytes([rng.randrange(256)]) + body[place + 1 :]
    else:
        body = bytes(rng.randrange(256) for _ in range(rng.randrange(60)))
    headers = {"Content-Type": "application/json"} if rng.random() < 0.8 else {}
    if rng.random() < 0.2:
        name = rng.choice(["Content-Type", "Content-Encoding", "Authorization", "Accept", "X-" + rng.choice(KEYS)])
        headers[name] = "".join(rng.choice(string.printable[:94]) for _ in range(rng.randrange(1, 30)))
    return rng.choice(METHODS), path, body, headers


@pytest.fixture(params=["five tasks", "every kind of label"])
def checkpoint(request, system, session_config, tmp_path):
    """Models with tasks of all types; the second has one of multiple choice."""
    if request.param == "five tasks":
        answer_by_text(system)
    else:
        system = make_kinds_system(session_config.model.model_dump())
    return save_system(system, tmp_path / "model")


def test_no_request_makes_the_server_fail(serve, tmp_path):
    """``make fuzz`` sends 10,000."""
    cases = int(os.environ.get("FUZZ_REQUESTS", "500")) // 2
    server, client = serve(feedback=FeedbackConfig(file=str(tmp_path / "feedback.jsonl"), texts=True, max_rows=10**6))
    statuses = set()
    for seed in range(cases):
        method, path, body, headers = _request(random.Random(seed))
        response = client.request(method, path, content=body, headers=headers)
        assert response.status_code < 500, (seed, response.text)
        assert "Traceback" not in response.text, seed
        assert response.status_code < 400 or method == "HEAD" or response.json()["error_type"], seed
        statuses.add(response.status_code)
    assert {200, 400, 404, 405, 415, 422} <= statuses
    assert client.get("/health/ready").status_code == 200
    assert server.engine.in_flight == 0
