"""Interfaces of other servers: their forms, their clients unchanged, and what is refused."""

import contextlib
import subprocess
import sys

import openai
import pytest
from huggingface_hub import InferenceClient
from tiny import make_kinds_system, nearly, save_system

from dynamo_mtl.serving.wires.systemone import choice_confidence, mean_level, score_confidence
from dynamo_mtl.serving.wires.typed_questions import TypedQuestion, plan

STATE = "The bus stop is gone, and the bed was a surprise."
LEVELS = [f"level {number}" for number in range(11)]
FREE = {"type": "choice", "instructions": "What is it about?", "criteria": {"bus": "a bus", "bed": "a bed", "c": None}}


@pytest.fixture
def checkpoint(session_config, tmp_path):
    return save_system(make_kinds_system(session_config.model.model_dump()), tmp_path / "model")


@pytest.fixture
def labels(model):
    return model.system.tasks["topics"].config.labels


def address(client):
    return str(client.base_url).rstrip("/")


def ask(client, questions, state=STATE, **more):
    return client.post("/v1/systemone", json={"model": "m", "state": state, "questions": questions, **more})


def test_a_question_that_is_a_task_is_answered_by_it(serve, model, labels):
    _, client = serve()
    questions = {
        "topics": {"type": "choice", "criteria": dict.fromkeys(labels)},
        "levels": {"type": "score", "instructions": "How good?", "criteria": LEVELS},
        "marks": {"type": "score", "criteria": ["bad", "fair", "good"]},
        f"aspects.{model.system.tasks['aspects'].config.labels[1].replace('_', ' ').upper()}": {"type": "noul"},
    }
    found = ask(client, questions).json()
    direct = model(STATE, tasks=["topics", "levels", "marks", "aspects"])["answers"]
    answers = found["answers"]
    assert found["model"] == "m"
    assert list(answers) == list(questions)
    assert answers["topics"]["probabilities"] == nearly(direct["topics"]["probabilities"], 1e-5)
    assert answers["topics"]["choice"] == direct["topics"]["label"]
    assert list(answers["levels"]["probabilities"].values()) == nearly(
        list(direct["levels"]["probabilities"].values()), 1e-5
    )
    assert answers["levels"]["score"] == pytest.approx(direct["levels"]["value"], abs=1e-4)
    assert answers["levels"]["legend"] == {str(n): text for n, text in enumerate(LEVELS)}
    assert answers["marks"]["score"] == pytest.approx(direct["marks"]["value"] / 10 * 2, abs=1e-4)
    assert sum(answers["marks"]["probabilities"].values()) == pytest.approx(1.0)
    share = list(direct["aspects"]["probabilities"].values())[1]
    assert answers[list(questions)[3]] == {"type": "noul", "noul": pytest.approx(share, abs=1e-5)}
    assert found["usage"]["input_tokens"] > 4 * 5
    assert found["usage"]["output_tokens"] == 0


def test_levels_are_found_by_their_names(serve, model):
    _, client = serve()
    shares = model(STATE, task_hint="levels")["probabilities"]
    found = ask(client, {"levels": {"type": "score", "criteria": ["10", "5", "0"]}}).json()["answers"]["levels"]
    whole = shares["10"] + shares["5"] + shares["0"]
    assert list(found["probabilities"].values()) == nearly([shares[n] / whole for n in ("10", "5", "0")], 1e-5)
    few = ask(client, {"levels": {"type": "score", "criteria": ["bad", "good"]}}).json()["answers"]["levels"]
    assert few["score"] == pytest.approx(model(STATE, task_hint="levels")["value"] / 10, abs=1e-4)


def test_a_label_has_a_yes_or_no_question_of_its_own(serve, model, labels):
    _, client = serve()
    shares = model(STATE, task_hint="topics")["probabilities"]
    found = ask(client, {f"topics.{labels[1]}": {"type": "noul"}, "topics.v2": {"type": "noul"}}).json()["answers"]
    assert found[f"topics.{labels[1]}"]["noul"] == pytest.approx(shares[labels[1]], abs=1e-5)
    free = model({"text": "topics.v2", "context": STATE, "choices": ["yes", "no"]}, task_hint="quiz")
    assert found["topics.v2"]["noul"] == pytest.approx(free["probabilities"][0], abs=1e-5)


def test_some_of_the_labels_share_their_probability(serve, model, labels):
    _, client = serve()
    all_shares = model(STATE, task_hint="topics")["probabilities"]
    criteria = {"first": labels[0], "second": labels[2]}
    found = ask(client, {"topics": {"type": "choice", "criteria": criteria}}).json()["answers"]["topics"]
    whole = all_shares[labels[0]] + all_shares[labels[2]]
    expected = {"first": all_shares[labels[0]] / whole, "second": all_shares[labels[2]] / whole}
    assert found["probabilities"] == nearly(expected, 1e-5)


def test_free_questions_go_to_the_task_of_multiple_choice(serve, model):
    _, client = serve()
    questions = {"about": FREE, "sure": {"type": "noul", "instructions": "Is it sure?"},
                 "one": {"type": "choice", "criteria": {"only": "x"}},
                 "how": {"type": "score", "instructions": "How?", "criteria": ["low", "high"]}}  # fmt: skip
    found = ask(client, questions).json()["answers"]
    asked = {"text": "What is it about?", "context": STATE, "choices": ["a bus", "a bed", "c"]}
    direct = model(asked, task_hint="quiz")
    assert list(found["about"]["probabilities"]) == ["bus", "bed", "c"]
    assert list(found["about"]["probabilities"].values()) == nearly(direct["probabilities"], 1e-5)
    assert found["about"]["choice"] == ["bus", "bed", "c"][direct["index"]]
    yes = model({"text": "Is it sure?", "context": STATE, "choices": ["yes", "no"]}, task_hint="quiz")
    assert found["sure"]["noul"] == pytest.approx(yes["probabilities"][0], abs=1e-5)
    assert found["one"]["probabilities"] == {"only": 1.0}
    assert found["one"]["confidence"] == 1.0
    assert set(found["how"]["probabilities"]) == {"0", "1"}


def test_an_answer_does_not_depend_on_the_other_questions(serve):
    _, client = serve()
    questions = {"about": FREE, "marks": {"type": "score", "criteria": ["bad", "good"]},
                 "sure": {"type": "noul", "instructions": "Is it sure?"}}  # fmt: skip
    together = ask(client, questions).json()["answers"]
    for name, question in questions.items():
        assert ask(client, {name: question}).json()["answers"][name] == nearly(together[name], 1e-5)


def test_a_batch_gives_what_each_state_gives(serve):
    _, client = serve()
    questions = {"about": FREE, "marks": {"type": "score", "criteria": ["bad", "good"]}}
    states = [STATE, {"kind": "order", "items": ["bed"]}, {"text": "great handle, poor zip"}]
    found = client.post("/v1/systemone/batch", json={"states": states, "questions": questions}).json()
    for state, result in zip(states, found["results"], strict=True):
        assert result == nearly({**ask(client, questions, state).json(), "model": "dynamo"}, 1e-5)
    assert found["total_usage"]["input_tokens"] == sum(one["usage"]["input_tokens"] for one in found["results"])


def test_confidence_by_hand():
    assert choice_confidence([0.5, 0.25, 0.25]) == pytest.approx((0.5 - 1 / 3) / (2 / 3))
    assert choice_confidence([1 / 3] * 3) == pytest.approx(0.0)
    assert score_confidence([0.0, 1.0, 0.0]) == 1.0
    # The likeliest level is 0; its mean distance is 0.2 + 2 · 0.2; uniform shares are 2/3 from the middle on average.
    assert score_confidence([0.6, 0.2, 0.2]) == pytest.approx(1 - 0.6 / (2 / 3))
    assert mean_level([0.5, 0.25, 0.25]) == pytest.approx(0.75)


def test_yes_and_no_are_told_by_the_labels(model, monkeypatch):
    def read(labels, texts=("", "")):
        task = model.system.tasks["topics"]
        monkeypatch.setattr(task, "output_names", lambda: labels)
        question = TypedQuestion("topics", "predicate", "", ["true", "false"], texts)
        shares = {labels[0]: 0.2, labels[1]: 0.8}
        return plan(question, model.system, "questions.0").read({"probabilities": shares})[0]

    assert read(["no", "yes"]) == pytest.approx(0.8)
    assert read(["negative", "positive"]) == pytest.approx(0.8)
    assert read(["not_paraphrase", "paraphrase"]) == pytest.approx(0.8)
    assert read(["spam", "ham"], ("spam", "ham")) == pytest.approx(0.2)
    assert read(["positive", "negative"], ("negative", "")) == pytest.approx(0.8)
    assert read(["positive", "negative"], ("", "positive")) == pytest.approx(0.8)
    with pytest.raises(Exception, match="give as criteria which of two means true"):
        read(["spam", "ham"])


@pytest.mark.parametrize(
    ("questions", "sentence"),
    [
        ({}, "questions: "),
        ({"zebra": {"type": "zebra"}}, "questions: type should be one of 'noul', 'choice', 'score'"),
        ({"a": {"type": "choice"}}, "criteria: field required"),
        ({"a": {"type": "choice", "criteria": {}}}, "criteria: "),
        ({"a": {"type": "score", "criteria": {"zebra": "x"}}}, "criteria: input should be a valid list"),
        ({"a": {"type": "noul", "criteria": {"zebra": "x"}}}, "criteria: input should be 'true' or 'false'"),
        ({"a": {"type": "noul", "zebra": 1}}, "has an unknown key"),
        ({"topics": {"type": "choice", "criteria": {"zebra": None, "b": None}}}, "questions.0: the task 'topics' has"),
        ({"topics": {"type": "noul"}}, "give as criteria which of two means true"),
        ({"aspects": {"type": "noul"}}, "questions.0: the task 'aspects' gives each label by itself"),
        ({"marks": {"type": "noul"}}, "the task 'marks' gives a number; ask a question of type score"),
    ],
)
def test_what_is_wrong_is_one_sentence_that_repeats_nothing(serve, questions, sentence):
    _, client = serve()
    response = ask(client, questions)
    assert response.status_code == 422
    assert sentence in response.json()["error"]
    assert "zebra" not in response.text


def test_other_wrong_requests(serve, model, monkeypatch):
    _, client = serve(max_characters=200)
    assert ask(client, {"marks": {"type": "score", "criteria": ["a", "b"]}}, "x" * 201).status_code == 422
    assert ask(client, {"marks": {"type": "score", "criteria": ["a", "b"]}}, assets={"a": {}}).status_code == 422
    assert ask(client, {"marks": {"type": "score", "criteria": ["a", "b"]}}, None).status_code == 200
    many = {"states": ["x"] * 200, "questions": {"marks": {"type": "score", "criteria": ["a", "b"]}, "n": FREE}}
    assert "400 questions; send at most 256" in client.post("/v1/systemone/batch", json=many).json()["error"]
    for depth in (200, 900, 985, 990, 995, 1000, 5000):
        deep = b'{"state": ' + b"[" * depth + b"]" * depth + b', "questions": {"a": {"type": "noul"}}}'
        sent = client.post("/v1/systemone", content=deep, headers={"Content-Type": "application/json"})
        assert sent.status_code in (200, 400, 422), (depth, sent.text)
    odd = {
        "model": "m",
        "input": [{"type": [], "content": "x"}],
        "questions": [{"type": "predicate", "instructions": "x"}],
    }
    assert client.post("/v1/decisions", json=odd).status_code == 422
    surrogate = client.post(
        "/v1/systemone", content=b'{"state": "\\ud800", "questions": {"a": {"type": "noul"}}}',
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    assert "surrogate" in surrogate.json()["error"]
    monkeypatch.delitem(model.system.tasks, "quiz")
    missing = ask(client, {"zebra": FREE})
    assert missing.status_code == 422
    assert "no task has this name, and none answers free questions; known: topics, aspects" in missing.json()["error"]


def test_the_openai_client_decides_and_lists_models(serve, model, labels):
    _, client = serve(key="a-key-of-16-chars")
    stack = contextlib.ExitStack()
    service, wrong = (
        stack.enter_context(openai.OpenAI(base_url=f"{address(client)}/v1", api_key=key, max_retries=0))
        for key in ("a-key-of-16-chars", "wrong")
    )
    with stack:
        check_decisions(service, model, labels)
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()


def check_decisions(service, model, labels):
    assert [one.id for one in service.models.list()] == ["dynamo"]
    assert service.models.retrieve("dynamo").owned_by == "dynamo"
    found = service.decisions.create(
        model="dynamo",
        input=[{"role": "user", "type": "message", "content": [{"type": "input_text", "text": STATE}]}],
        questions=[
            {"type": "choice", "name": "topics", "instructions": "topic?", "choices": [{"value": n} for n in labels]},
            {"type": "score", "name": "levels", "instructions": "how?", "levels": [{"label": n} for n in LEVELS]},
            {"type": "predicate", "instructions": "Is it sure?"},
            {"type": "choice", "instructions": "true?", "choices": [{"value": True}, {"value": "no"}]},
        ],
    )
    direct = model(STATE, tasks=["topics", "levels"])["answers"]
    topics, levels, sure, free = found.answers
    assert topics.choice == direct["topics"]["label"]
    assert {one.value: one.probability for one in topics.probabilities} == nearly(
        direct["topics"]["probabilities"], 1e-5
    )
    assert levels.score == pytest.approx(direct["levels"]["value"], abs=1e-4)
    assert 0 <= sure.probability <= 1
    assert free.choice in (True, "no")
    assert found.usage.total_tokens > 0
    with pytest.raises(openai.UnprocessableEntityError, match=r"input\.0: should be a message"):
        service.decisions.create(
            model="dynamo", questions=[{"type": "predicate", "instructions": "x"}],
            input=[{"role": "user", "type": "message", "content": [{"type": "input_image", "image_url": "x"}]}],
        )  # fmt: skip


def test_the_client_of_the_hub_labels_texts(serve, model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the server is on this machine
    _, client = serve()
    service = InferenceClient(model=f"{address(client)}/predict/topics")
    found = service.text_classification(STATE, top_k=2)
    direct = sorted(model(STATE, task_hint="topics")["probabilities"].items(), key=lambda item: -item[1])[:2]
    assert [(one.label, pytest.approx(one.score, abs=1e-5)) for one in found] == direct


def test_labels_have_the_forms_of_the_embeddings_server(serve, model):
    _, client = serve()
    direct = model(STATE, task_hint="topics")["probabilities"]
    single = client.post("/predict/topics", json={"inputs": STATE}).json()
    assert {one["label"]: one["score"] for one in single} == nearly(direct, 1e-5)
    assert [one["score"] for one in single] == sorted((one["score"] for one in single), reverse=True)
    batch = client.post("/predict/topics", json={"inputs": [[STATE], ["a", "b"]]}).json()
    assert batch[0] == nearly(single, 1e-5)
    assert client.post("/predict/topics", json={"inputs": ["a", "b"]}).json() == nearly(batch[1], 1e-5)
    raw = client.post("/predict/topics", json={"inputs": STATE, "raw_scores": True}).json()
    assert raw[0]["score"] < 0
    odds = client.post("/predict/aspects", json={"inputs": STATE, "raw_scores": True}).json()
    assert len(odds) == len(model.system.tasks["aspects"].config.labels)
    assert client.post("/predict/marks", json={"inputs": STATE}).json()[0]["label"] == "marks"
    other = client.post("/predict/faq", json={"inputs": STATE})
    assert (other.status_code, other.json()["error"]) == (
        404, "no such task of labels; known: topics, aspects, marks, levels",
    )  # fmt: skip
    vllm = client.post("/classify/topics", json={"model": "m", "input": [STATE, "a"]}).json()
    assert vllm["data"][0]["probs"] == nearly(list(direct.values()), 1e-5)
    assert vllm["data"][0]["num_classes"] == len(direct)
    assert vllm["data"][0]["label"] == single[0]["label"]


def test_an_input_that_is_routed_to_no_label_is_refused(serve, model, monkeypatch):
    _, client = serve()
    routed = client.post("/predict", json={"inputs": STATE})
    task = model(STATE)["task"]
    if task in ("topics", "aspects", "marks", "levels"):
        assert routed.status_code == 200
    for own in model.system.tasks.values():
        monkeypatch.setattr(own, "decides", None)
    refused = client.post("/predict", json={"inputs": STATE})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "validation")
    assert f"routed to the task '{task}', which gives no labels" in refused.json()["error"]


def test_each_interface_can_be_switched_off(serve):
    _, client = serve(wires={"systemone": False, "openai": False, "labels": False})
    paths = client.get("/openapi.json").json()["paths"]
    assert not {"/v1/systemone", "/v1/systemone/batch", "/v1/decisions", "/v1/models", "/predict", "/classify"} & set(
        paths
    )
    assert client.post("/predict", json={"inputs": STATE}).status_code == 404


def test_the_conformance_client_reads_every_answer(serve):
    """``jevbench check`` sends one question of each type, and reads the answers in the standard form."""
    _, client = serve()
    done = subprocess.run(
        [sys.executable, "-m", "jevbench", "check", "--url", f"{address(client)}/v1/systemone", "--model", "dynamo"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "jevbench check: OK" in done.stdout
