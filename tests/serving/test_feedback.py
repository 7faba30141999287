"""Clients say which task is right: it is kept within limits, and without the text unless that is allowed."""

import json

import pytest

from dynamo_mtl.config.serving_config import FeedbackConfig
from dynamo_mtl.errors import ConfigError

SECRET = "my number is 0170 555"
ITEM = {"question": "Who sang?", "context": "Ada sang."}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_there_is_no_such_route_unless_a_file_is_named(serve):
    _, client = serve()
    assert client.post("/v1/feedback", json={"inputs": "a", "task": "qa"}).status_code == 404


def test_without_leave_the_text_is_not_kept(serve, tmp_path):
    _, client = serve(feedback=FeedbackConfig(file=str(tmp_path / "new" / "f.jsonl")))
    answer = client.post("/v1/feedback", json={"inputs": [SECRET, ITEM], "task": "sentiment"})
    assert answer.json() == {"stored": 2, "rows": 2}
    content = (tmp_path / "new" / "f.jsonl").read_text()
    assert "0170" not in content
    assert "Ada" not in content
    assert {row["right_task"] for row in rows(tmp_path / "new" / "f.jsonl")} == {"sentiment"}


def test_with_leave_the_input_is_kept_as_it_is(serve, tmp_path):
    place = tmp_path / "f.jsonl"
    _, client = serve(feedback=FeedbackConfig(file=str(place), texts=True))
    client.post("/v1/feedback", json={"inputs": ITEM, "task": "qa"})
    client.post("/v1/feedback", json={"inputs": {"text": SECRET, "instruction": "Do it."}, "task": "summarization"})
    assert [row["input"] for row in rows(place)] == [
        {"text": "Who sang?", "context": "Ada sang."},
        {"text": SECRET, "instruction": "Do it."},
    ]


@pytest.mark.parametrize(("given", "task"), [("Who sang?", "qa"), (" ", "sentiment"), ([ITEM, "Who sang?"], "qa")])
def test_what_cannot_be_learned_is_not_kept(serve, tmp_path, given, task):
    place = tmp_path / "f.jsonl"
    _, client = serve(feedback=FeedbackConfig(file=str(place), texts=True))
    refused = client.post("/v1/feedback", json={"inputs": given, "task": task})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "validation")
    assert rows(place) == []


def test_a_file_that_was_moved_away_has_room_again_and_a_cut_line_is_ended(serve, tmp_path):
    place = tmp_path / "f.jsonl"
    place.write_text('{"right_task": "qa"}\n{"cut')
    _, client = serve(feedback=FeedbackConfig(file=str(place), max_rows=3))
    assert client.post("/v1/feedback", json={"inputs": ITEM, "task": "qa"}).json() == {"stored": 1, "rows": 3}
    assert client.post("/v1/feedback", json={"inputs": ITEM, "task": "qa"}).status_code == 503
    assert json.loads(place.read_text().splitlines()[2])["right_task"] == "qa"
    place.rename(tmp_path / "old.jsonl")
    assert client.post("/v1/feedback", json={"inputs": ITEM, "task": "qa"}).json() == {"stored": 1, "rows": 1}


def test_more_at_a_time_than_routing_takes_is_refused(serve, tmp_path):
    server, client = serve(feedback=FeedbackConfig(file=str(tmp_path / "f.jsonl")), max_routing=1)
    server._routing = 1
    assert client.post("/v1/feedback", json={"inputs": ITEM, "task": "qa"}).status_code == 429


def test_the_name_says_what_the_file_holds():
    with pytest.raises(ValueError, match=r"should end with .jsonl"):
        FeedbackConfig(file="feedback.csv")


def test_a_full_file_and_an_unknown_task_are_said(serve, tmp_path):
    place = tmp_path / "f.jsonl"
    place.write_text('{"right_task": "qa"}\n')
    _, client = serve(feedback=FeedbackConfig(file=str(place), max_rows=2))
    assert client.post("/v1/feedback", json={"inputs": [ITEM, ITEM], "task": "qa"}).status_code == 503
    assert client.post("/v1/feedback", json={"inputs": ITEM, "task": "qa"}).json()["rows"] == 2
    refused = client.post("/v1/feedback", json={"inputs": ITEM, "task": "qa"})
    assert (refused.status_code, refused.json()["error_type"]) == (503, "unavailable")
    assert "serving.feedback.max_rows is reached" in refused.json()["error"]
    unknown = client.post("/v1/feedback", json={"inputs": "a", "task": SECRET})
    assert unknown.status_code == 422
    assert "0170" not in unknown.text
    assert len(rows(place)) == 2


@pytest.mark.parametrize("body", [{}, {"inputs": [], "task": "qa"}, {"inputs": "a"}, {"inputs": "a", "task": 7}])
def test_a_body_of_another_form_is_refused(serve, tmp_path, body):
    _, client = serve(feedback=FeedbackConfig(file=str(tmp_path / "f.jsonl")))
    assert client.post("/v1/feedback", json=body).status_code == 422


def test_a_file_that_cannot_be_written_is_said_at_the_start(serve, tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"serving.feedback.file: .* cannot be written"):
        serve(feedback=FeedbackConfig(file=str(tmp_path / "folder.jsonl")))
