"""Routing of inputs from elsewhere: shares counted by hand, and what the command writes."""

import json

import numpy as np
import pytest
from tiny import save_system

from dynamo_mtl.cli import main
from dynamo_mtl.data.everyday import TYPES, everyday_rows
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.evaluation.report import result_markdown, shift_rows
from dynamo_mtl.evaluation.result import read_result
from dynamo_mtl.evaluation.shift import everyday_inputs, score_shift, scores_of, shift_sets
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.scoring import Routed


def test_shares_of_five_inputs(system):
    """Two right, one of them rejected; three wrong: one sure and rejected, one sure, one unsure."""
    chances = np.array([
        [0.95, 0.05, 0, 0, 0], [0.6, 0.4, 0, 0, 0], [0.02, 0.98, 0, 0, 0], [0.0, 0.91, 0.09, 0, 0],
        [0.2, 0.0, 0.8, 0, 0],
    ])  # fmt: skip
    routed = Routed(chances, [0] * 5, np.ones(5), [False, True, True, False, False])
    found = scores_of(routed, system)
    names = list(system.tasks)
    assert found == {
        "right": 0.4, "rejected": 0.4, "right_or_rejected": 0.6, "confident_wrong": 0.2,
        "sent_to": {names[0]: 2, names[1]: 2, names[2]: 1}, "n": 5,
    }  # fmt: skip


def _with_sets(system, **sets):
    tasks = dict(system.config.tasks)
    for task, files in sets.items():
        tasks[task] = tasks[task].model_copy(update={"shift_files": files})
        system.tasks[task].config = tasks[task]
    return system


def test_means_over_files_and_the_worst_of_them(system, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"source": str(n)}) + "\n" for n in range(4)))
    system = _with_sets(system, sentiment={"a": "a.txt"}, translation={"b": "b.jsonl"})
    first = np.eye(5)[[0]]
    monkeypatch.setattr(
        "dynamo_mtl.evaluation.shift.route_inputs",
        lambda predictor, inputs, label: Routed(
            np.repeat(first, len(inputs), 0), [system.route_of(one.task) for one in inputs], np.ones(len(inputs)),
            [False] * len(inputs),
        ),
    )  # fmt: skip
    data = system.config.data.model_copy(update={"root": str(tmp_path)})
    found = score_shift(Predictor(system), shift_sets(system, data))
    assert {name: (one["task"], one["right"], one["n"]) for name, one in found["sets"].items()} == {
        "a": ("sentiment", 1.0, 2),
        "b": ("translation", 0.0, 4),
    }
    assert (found["mean_right"], found["worst_right"], found["most_confident_wrong"]) == (0.5, 0.0, 1.0)
    assert found["everyday"]["n"] == sum(len(everyday_rows(kind)) for kind in TYPES)
    assert found["everyday"]["right"] == pytest.approx(len(everyday_rows("sentiment")) / found["everyday"]["n"])


def test_two_sets_of_one_name_are_refused(system, tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    system = _with_sets(system, sentiment={"a": str(tmp_path / "a.txt")}, translation={"a": str(tmp_path / "a.txt")})
    with pytest.raises(ConfigError, match=r"tasks.translation.shift_files: task 'sentiment' has a set 'a' too"):
        shift_sets(system, system.config.data)


def test_sets_of_tasks_whose_plain_inputs_say_nothing_are_refused(system):
    asking = system.config.tasks["translation"].model_copy(
        update={"requires_instruction": True, "shift_files": {"a": "a"}}
    )
    system.tasks["translation"].config = asking
    with pytest.raises(ConfigError, match=r"tasks.translation.shift_files: its inputs need an instruction"):
        shift_sets(system, system.config.data)


def test_everyday_inputs_belong_to_the_only_task_of_a_type(system):
    assert list(everyday_inputs(system)) == list(TYPES)
    asking = system.config.tasks["translation"].model_copy(update={"requires_instruction": True})
    system.tasks["translation"].config = asking
    assert "translation" not in everyday_inputs(system)


def test_the_command_scores_only_routing_and_writes_it(system, tmp_path, capsys):
    model = save_system(system, tmp_path / "model")
    (tmp_path / "mine.txt").write_text("I like it.\nI do not like it.\n")
    output = tmp_path / "shift.json"
    settings = f"tasks.sentiment.shift_files=[{tmp_path / 'mine.txt'}]"
    places = ["--output", str(output), "--pictures", str(tmp_path / "pages")]
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", str(model), settings, "--shift", *places])
    result = read_result(output)
    assert not result.systems
    assert result.shift["sets"]["mine"]["n"] == 2
    assert result.routing["bare"]["n"] > 0
    header, rows = shift_rows(result.shift)
    everyday = [["everyday", kind] for kind in (*TYPES, "all")]
    assert [row[:2] for row in rows] == [*everyday, ["mine", "sentiment"], ["mean of the files", ""]]
    assert "| mine | sentiment |" in result_markdown(result)
    assert "Inputs from elsewhere" in (tmp_path / "pages" / "report.html").read_text()
    assert "mine" in capsys.readouterr().out
    assert len(header) == len(rows[-1])
