"""pass@k from the command to the result file, with programs that are known."""

import json
import platform

import pytest
from tiny import save_system

from dynamo_mtl.cli import main
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.evaluation import execution
from dynamo_mtl.evaluation.execution import score_execution
from dynamo_mtl.evaluation.result import read_result
from dynamo_mtl.inference.predictor import Prediction, Predictor, Route
from dynamo_mtl.tasks.task import Example

pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="code is isolated on Linux on x86_64 only"
)


def _problem(code, *tests):
    return Example("add one", None, code, tests=json.dumps({"setup": "", "tests": list(tests)}))


PROBLEMS = [
    _problem("def f(x):\n    return x + 1", "assert f(2) == 3"),
    _problem("def f(x):\n    return x * 2", "assert f(3) == 6", "assert f(0) == 0"),
    _problem("def f(x):\n    return x", "assert f(1) == 2"),  # the reference is wrong
    Example("no tests", None, "pass"),
]
WRITTEN = [
    "def f(x):\n    return x + 1", "def f(x):\n    return x", "def f(x):",
    "def f(x):\n    return x + x", "def f(x):\n    return 2 * x", "import os\nos._exit(0)",
]  # fmt: skip


@pytest.fixture
def writes(system, monkeypatch):
    """A predictor that gives three known programs for each of the two valid problems."""
    task = system.tasks["code_generation"]
    sampled = task.config.generation.model_copy(update={"sampling_temperature": 0.8})
    task.config = task.config.model_copy(update={"generation": sampled})
    monkeypatch.setattr(
        execution,
        "predict_examples",
        lambda predictor, inputs, *_: [
            Prediction("code_generation", text, Route([], 1.0)) for text in WRITTEN[: len(inputs)]
        ],
    )
    monkeypatch.setattr(task, "texts", list)
    return Predictor(system)


def test_programs_are_counted_by_what_became_of_them(writes):
    """One of three, and two of three: pass@1 is their mean. Fails if programs are dealt to the wrong problem."""
    examples = {name: PROBLEMS if name == "code_generation" else [] for name in writes.system.tasks}
    found = score_execution(writes, examples, 3, 0)
    assert set(found) == {"code_generation"}
    scores = found["code_generation"]
    assert scores["pass@1"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert (scores["problems"], scores["invalid"], scores["samples"]) == (2, 1, 3)
    assert scores["outcomes"] == {"passed": 3, "failed": 2, "no report": 1}


def test_several_programs_need_sampling(system):
    examples = {name: PROBLEMS if name == "code_generation" else [] for name in system.tasks}
    with pytest.raises(ConfigError, match="--samples: found 5, but code_generation decodes without drawing"):
        score_execution(Predictor(system), examples, 5, 0)


@pytest.mark.parametrize("confirmed", [True, False])
def test_code_runs_only_where_it_is_confirmed(system, session_config, tmp_path, confirmed):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        {"description": "add one", "code": p.target, "test_list": json.loads(p.tests)["tests"]} for p in PROBLEMS[:2]
    ]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_system(system, tmp_path / "model")
    arguments = ["evaluate", str(tmp_path / "model"), f"data.code_generation_data_path={folder}"]
    places = ["--systems", "dynamo", "--output", str(tmp_path / "result.json"), "--pictures", str(tmp_path / "page")]
    with pytest.raises(SystemExit) as end:
        main([*arguments, *places, *(["--confirm-run-unsafe-code"] if confirmed else [])])
    assert end.value.code == 0
    found = read_result(tmp_path / "result.json").execution
    if not confirmed:
        assert not found
        return
    assert found["code_generation"]["problems"] == 2
    assert found["code_generation"]["pass@1"] == 0.0
    assert "pass@1" in (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
