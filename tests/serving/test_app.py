"""What the server answers: the right things, and to anything wrong one sentence that repeats nothing."""

import dataclasses
import gzip
import json
import socket
import threading
import time

import pytest
from clients import KEY, together, wait_until

SECRET = "zebra-in-the-body"
MIXED = [
    "A wonderful film.",
    {"question": "Who sang?", "context": "Ada sang. Tom slept.", "task_hint": "qa"},
    {"text": "People stopped. A fire closed the harbour.", "task_hint": "summarization"},
    {"text": "call the function f with x", "task_hint": "code_generation"},
    {"text": "The man buys an apple.", "task_hint": "translation", "instruction": "Translate:"},
    {"text": "A wonderful film.", "task_hint": "sentiment"},
]
ROUTES = ["/", "/docs", "/openapi.json", "/v1/tasks", "/info", "/health/ready", "/metrics", "/playground.js"]


def _is_failure(response, status, error_type):
    content = response.json()
    assert (response.status_code, content["error_type"]) == (status, error_type), response.text
    assert set(content) == {"error", "error_type", "request_id"}
    assert SECRET not in response.text
    assert response.headers["x-request-id"] == content["request_id"]
    return content["error"]


def test_answers_are_those_of_the_model_one_by_one_and_together(serve, model):
    _, client = serve()
    expected = model(MIXED)
    batched = client.post("/v1/predict", json={"inputs": MIXED}).json()
    alone = together(*(lambda one=one: client.post("/v1/predict", json={"inputs": one}).json() for one in MIXED))
    for want, *found in zip(expected, batched, alone, strict=True):
        for answer in found:
            numbers = {key for key, value in want.items() if isinstance(value, float)}
            assert {k: answer[k] for k in numbers} == pytest.approx({k: want[k] for k in numbers}, abs=1e-5)
            texts = want.keys() - numbers - {"routing"}
            assert {k: answer[k] for k in texts} == {k: want[k] for k in texts}
            assert answer["routing"]["probabilities"] == pytest.approx(want["routing"]["probabilities"], abs=1e-5)


def test_settings_of_a_request_are_those_of_a_call(serve, model):
    _, client = serve()
    given = {"inputs": MIXED[4], "parameters": {"max_new_tokens": 3, "num_beams": 2}, "top_k": 2}
    answer = client.post("/v1/predict", json=given).json()
    expected = model(MIXED[4], top_k=2, max_new_tokens=3, num_beams=2)
    assert answer["translation_text"] == expected["translation_text"]
    hinted = client.post("/v1/predict", json={"inputs": "A film.", "task_hint": "sentiment"}).json()
    assert hinted["task"] == "sentiment"


def test_route_says_what_the_model_says(serve, model):
    _, client = serve()
    one = client.post("/v1/route", json={"inputs": "A film."}).json()
    assert one == client.post("/v1/route", json={"inputs": ["A film."]}).json()[0]
    expected = model.route("A film.")
    assert one["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)
    assert one["thresholds"] == expected["thresholds"]
    assert one["predicted_task"] == expected["predicted_task"]


def test_information_routes(serve, model):
    _, client = serve(max_items=7)
    tasks = client.get("/v1/tasks").json()
    assert [task["name"] for task in tasks] == model.task_names
    assert [task["name"] for task in tasks if task["needs_context"]] == ["qa"]
    info = client.get("/info").json()
    assert info["limits"]["max_items"] == 7
    assert info["weight_hash"] == model.metadata.weight_hash
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/v1/predict", "/v1/route", "/v1/tasks", "/health/live", "/health/ready", "/info", "/metrics",
        "/v1/systemone", "/v1/systemone/batch", "/v1/decisions", "/v1/models", "/v1/models/{model}",
        "/predict", "/predict/{task}", "/classify", "/classify/{task}",
    }  # fmt: skip
    page = client.get("/docs").text
    assert all(path in page for path in paths)
    assert "<script" not in page


@pytest.mark.parametrize(
    ("body", "status", "error_type", "says"),
    [
        (b'{"inputs": "\\ud800"}', 422, "validation", "surrogate"),
        (b'{"inputs": "x", "task_hint": "\\udfff"}', 422, "validation", "task_hint"),
        (b'{"inputs": "x", "parameters": {"length_penalty": NaN}}', 400, "json", "NaN"),
        (b'{"inputs": "x", "parameters": {"length_penalty": 1e999}}', 422, "validation", "too large"),
        (b'{"inputs": "x", "top_k": ' + b"9" * 5000 + b"}", 422, "validation", "too large"),
        (b'{"inputs": "x", "inputs": "zebra-in-the-body"}', 422, "validation", "repeated"),
        (b"[" * 100_000, 400, "json", "nested"),
        (b'{"inputs": "zebra-in-the-body', 400, "json", "not JSON"),
        (b"\xff\xfe", 400, "json", "UTF-8"),
        (b"", 400, "json", "not JSON"),
        (b"null", 422, "validation", "body"),
        (b'"zebra-in-the-body"', 422, "validation", "body"),
        (b'{"inputs": []}', 422, "validation", "inputs"),
        (b'{"inputs": [null]}', 422, "validation", "inputs.0"),
        (b'{"inputs": {"zebra-in-the-body": 1}}', 422, "validation", "known: text, question"),
        (b'{"inputs": {"text": "a", "question": "b"}}', 422, "validation", "one of text and question"),
        (b'{"inputs": "x", "zebra-in-the-body": 1}', 422, "validation", "known: inputs"),
        (b'{"inputs": "x", "task_hint": "zebra-in-the-body"}', 422, "validation", "known: sentiment"),
        (b'{"inputs": {"text": "x", "task_hint": "zebra-in-the-body"}}', 422, "validation", "inputs.0.task_hint"),
        (b'{"inputs": "x", "deadline_seconds": 0}', 422, "validation", "deadline_seconds"),
    ],
)
def test_bodies_that_mean_nothing_are_refused(serve, body, status, error_type, says):
    _, client = serve()
    response = client.post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
    assert says in _is_failure(response, status, error_type)


def test_types_and_encodings_other_than_plain_json_are_refused(serve):
    _, client = serve()
    body = json.dumps({"inputs": SECRET}).encode()
    for headers in ({"Content-Type": "text/plain"}, {}, {"Content-Type": "application/json-patch+json"}):
        _is_failure(client.post("/v1/predict", content=body, headers=headers), 415, "media_type")
    bomb = gzip.compress(b"[" * 10_000_000)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    _is_failure(client.post("/v1/predict", content=bomb, headers=headers), 415, "media_type")


def test_a_body_is_counted_while_it_arrives_whatever_length_it_claims(serve):
    _, client = serve(max_body_bytes=10_000)
    headers = {"Content-Type": "application/json"}
    _is_failure(client.post("/v1/predict", content=b"x" * 10_001, headers=headers), 413, "too_large")
    chunks = (b"x" * 1000 for _ in range(20))  # sent without a length
    _is_failure(client.post("/v1/predict", content=chunks, headers=headers), 413, "too_large")


def test_a_body_that_comes_too_slowly_is_given_up_and_its_connection_closed(serve):
    _, client = serve(body_seconds=0.2)
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        head = "POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
        connection.sendall(head.encode())
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"too_slow" in answer


def test_unknown_paths_and_methods(serve):
    _, client = serve()
    _is_failure(client.get(f"/{SECRET}"), 404, "not_found")
    response = client.get("/v1/predict")
    _is_failure(response, 405, "method")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/route", *ROUTES])
def test_every_route_but_live_needs_the_key(serve, path):
    _, client = serve(KEY)
    right = client.headers.pop("Authorization")
    method = "POST" if path in ("/v1/predict", "/v1/route") else "GET"
    for wrong in (None, "Bearer wrong", "Bearer", right[:-1], right + "x", "Basic !", "Basic eDp5", f"Token {KEY}"):
        headers = {} if wrong is None else {"Authorization": wrong}
        response = client.request(method, path, headers=headers, params={"key": KEY})
        _is_failure(response, 401, "authentication")
        assert "Bearer" in response.headers["www-authenticate"]
    assert client.request(method, path, headers={"Authorization": right}).status_code in (200, 415)
    assert client.request(method, path, auth=("anybody", KEY)).status_code in (200, 415)
    assert client.get("/health/live").status_code == 200


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"parameters": {"max_new_tokens": 10**9}}, "parameters.max_new_tokens"),
        ({"parameters": {"min_new_tokens": 10**9}}, "parameters.min_new_tokens"),
        ({"parameters": {"num_beams": 10**4}}, "parameters.num_beams"),
        ({"parameters": {"sampling_temperature": 0}}, "parameters.sampling_temperature"),
        ({"parameters": {"sampling_temperature": 1e-30}}, "parameters.sampling_temperature"),
        ({"parameters": {"sampling_temperature": 1.0, "num_beams": 2}}, "num_beams"),
        ({"parameters": {"max_new_tokens": 200}}, "max_new_tokens"),
        ({"top_k": 100}, "top_k"),
        ({"inputs": ["x"] * 65}, "inputs"),
    ],
)
def test_what_would_cost_too_much_is_refused(serve, given, place):
    _, client = serve()
    assert place in _is_failure(client.post("/v1/predict", json={"inputs": "x", **given}), 422, "validation")


def test_a_text_that_would_keep_the_tokenizer_busy_is_refused_by_its_length(serve):
    _, client = serve(max_body_bytes=2_000_000)
    for inputs in ("x" * 1_000_000, [{"text": "x", "context": "y" * 1_000_000}]):
        says = _is_failure(client.post("/v1/predict", json={"inputs": inputs}), 422, "validation")
        assert "characters" in says


def test_an_input_that_cannot_be_answered_fails_alone(serve, model, monkeypatch):
    begin = model.predictor.begin
    marked = model.reader.question("A bad one.", None, None, {}).source

    def failing(questions, decoder):
        if any(question.source == marked for question in questions):
            raise RuntimeError(SECRET)
        return begin(questions, decoder)

    monkeypatch.setattr(model.predictor, "begin", failing)
    server, client = serve()
    inputs = ["A wonderful film.", "A bad one.", MIXED[4]]
    answers = client.post("/v1/predict", json={"inputs": inputs})
    assert answers.status_code == 200
    assert [answer.get("error_type") for answer in answers.json()] == [None, "internal", None]
    assert SECRET not in answers.text
    _is_failure(client.post("/v1/predict", json={"inputs": "A bad one."}), 500, "internal")
    assert wait_until(lambda: server.engine.in_flight == 0)
    assert "dynamo_failed_inputs_total 2.0" in client.get("/metrics").text


def test_inputs_of_no_task_are_refused_where_the_model_is_told_to(serve, model, monkeypatch):
    never_sure = dataclasses.replace(model.predictor.calibration, threshold=2.0)
    monkeypatch.setattr(model.predictor, "calibration", never_sure)
    _, client = serve()
    assert client.post("/v1/predict", json={"inputs": "x"}).json()["routing"]["rejected"] is True
    router = model.system.config.router.model_copy(update={"on_rejection": "error"})
    model.system.config = model.system.config.model_copy(update={"router": router})
    _is_failure(client.post("/v1/predict", json={"inputs": SECRET}), 422, "rejected")


def test_labels_of_metrics_are_few_whatever_is_asked(serve):
    _, client = serve()
    client.get("/metrics")
    before = len(client.get("/metrics").text.splitlines())
    for number in range(300):
        client.get(f"/nowhere/{number}")
        client.post("/v1/predict", json={"inputs": "x", "task_hint": f"task-{number}"})
    # One line for each status, and a histogram for each of two routes.
    assert len(client.get("/metrics").text.splitlines()) < before + 60


def test_deadlines_of_requests(serve, model, monkeypatch):
    begin = model.predictor.begin

    def slow(questions, decoder):
        time.sleep(0.2)
        return begin(questions, decoder)

    monkeypatch.setattr(model.predictor, "begin", slow)
    server, client = serve()
    given = {"inputs": {"text": "x", "task_hint": "translation"}, "deadline_seconds": 0.1}
    _is_failure(client.post("/v1/predict", json=given), 504, "deadline")
    assert wait_until(lambda: server.engine.in_flight == 0)


@pytest.mark.parametrize(
    ("limit", "path", "stage"), [("max_requests", "/v1/predict", "begin"), ("max_routing", "/v1/route", "route")]
)
def test_a_full_server_says_when_to_come_back(serve, model, monkeypatch, limit, path, stage):
    """One request is held while a second one comes. Fails if it waits, or is refused without a time."""
    real, came, go = getattr(model.predictor, stage), threading.Event(), threading.Event()

    def held(*given):
        came.set()
        assert go.wait(20)
        return real(*given)

    monkeypatch.setattr(model.predictor, stage, held)
    _, client = serve(**{limit: 1})
    first = []
    worker = threading.Thread(target=lambda: first.append(client.post(path, json={"inputs": "A wonderful film."})))
    worker.start()
    assert came.wait(20)
    second = client.post(path, json={"inputs": SECRET})
    _is_failure(second, 429, "overloaded")
    assert int(second.headers["retry-after"]) >= 1
    go.set()
    worker.join(20)
    assert first[0].status_code == 200


def test_every_answer_carries_the_headers_that_protect_its_page(serve):
    _, client = serve()
    for path in (*ROUTES, "/nowhere"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
