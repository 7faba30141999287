"""The path of docs/your_own_data.md, shortened: from three tables to a served model."""

from newcomer import SHORT, commands, walk


def test_three_tables_become_a_served_model(tmp_path):
    """Fails if a command of the page does not run as written, or the server does not answer in a task's shape."""
    assert [line[0] for line in commands()] == ["init", "doctor", "data", "train", "evaluate", "serve"]
    found = walk(tmp_path, 120, SHORT)
    assert set(found["answers"]) == {"reviews", "requests", "questions"}
    assert found["asked"] == 21
    assert (tmp_path / "runs" / "own" / "result.json").is_file()
    for answer in found["answers"].values():
        assert {"task", "routing"} < set(answer)
