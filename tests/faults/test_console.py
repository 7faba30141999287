"""What a terminal of 80 columns shows: whole words, intervals on one line, and the mistakes that were made."""

import json
import logging
from pathlib import Path

import pytest

from dynamo_mtl.evaluation.report import confused_labels, print_result, print_table
from dynamo_mtl.evaluation.result import read_result

RESULTS = Path(__file__).parent.parent.parent / "results"


@pytest.fixture
def narrow(monkeypatch, capsys):
    """Lines that a function prints at 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def lines(show):
        show()
        return capsys.readouterr().out.splitlines()

    return lines


@pytest.mark.parametrize("name", ["quickstart.json", "minilm-cpu.json", "compare-cpu.json"])
def test_nothing_is_cut_or_broken(narrow, name):
    """Fails where a header ends in an ellipsis, or an interval goes over two lines."""
    result = read_result(RESULTS / name)
    shown = narrow(lambda: print_result(result))
    assert max(map(len, shown)) <= 80
    assert not [line for line in shown if "…" in line]
    text = "\n".join(shown)
    for task, metric in result.main_metrics.items():
        assert task in text
        assert metric in text
    low, high = result.intervals["dynamo"]["sentiment"]
    assert f"{low:.3f} to {high:.3f}" in text
    assert str(int(result.systems["dynamo"]["sentiment"]["n"])) in text


def test_a_table_that_does_not_fit_is_a_list(narrow):
    header = [f"quite-a-long-header-{number}" for number in range(6)]
    shown = narrow(lambda: print_table("T", header, [[f"value-{number}" for number in range(6)]]))
    assert shown[1:] == [f"  {name}: value-{number}" for number, name in enumerate(header)]


def test_what_is_taken_for_what_is_said(tmp_path):
    content = json.loads((RESULTS / "quickstart.json").read_text(encoding="utf-8"))
    content["labels"] = {
        "sentiment": {"negative": {"negative": 90, "positive": 10}, "positive": {"positive": 98, "negative": 2}}
    }
    (tmp_path / "r.json").write_text(json.dumps(content))
    said = confused_labels(read_result(tmp_path / "r.json"))
    assert said == ["sentiment takes 10 of 100 'negative' as 'positive', 2 of 100 'positive' as 'negative'"]


def test_log_lines_say_the_day_and_libraries_are_quiet():
    from dynamo_mtl.cli.shared import start_logging

    handlers = logging.getLogger().handlers[:]
    try:
        start_logging(False)
        record = logging.LogRecord("dynamo_mtl", logging.INFO, "", 0, "hello", (), None)
        said = logging.getLogger().handlers[0].format(record)
        assert said[4] == said[7] == "-"
        assert said[10] == "T"
        assert not logging.getLogger("torchao").isEnabledFor(logging.WARNING)
    finally:
        logging.getLogger().handlers[:] = handlers
