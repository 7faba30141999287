"""Writes docs/reliability.md: every promise, the tests that show it, and how each was seen to fail.

``python tests/reliability.py`` runs the tests that are marked with a row, as by ``@pytest.mark.promise("T4")``, and
writes the page from their names, docstrings and results.
"""

import ast
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"
ROWS = {
    "T1": "A run that is stopped and goes on ends with the same bytes and the same log as one that never stopped",
    "T2": "SIGKILL at random moments: every checkpoint verifies, and the end is the same",
    "T3": "SIGTERM and Ctrl-C save once and leave with 143 or 130",
    "T4": "The same seed gives the same log, another seed another one",
    "T5": "The number of processes changes neither the examples of a step nor its loss",
    "T6": "A loss or gradient that is not finite changes no parameter",
    "T7": "A bad gradient in one process is skipped by all",
    "T8": "Memory that runs out makes micro-batches smaller and leaves the update as it is",
    "T9": "The backbone is the same bytes after every phase",
    "T10": "A tracker that fails does not stop the training",
    "T11": "A full or read-only disk ends in a sentence, and older checkpoints still verify",
    "C1": "A changed, missing or additional file is refused by name",
    "C2": "A pickle is never run, under whatever name",
    "C3": "Broken tensor files and values that are not finite are refused",
    "C4": "An adapter that does not fit is refused, with the difference",
    "C5": "A configuration that names code runs none",
    "C6": "Names and links do not lead out of a folder",
    "C7": "A second writer is refused",
    "C8": "Older formats are read, newer ones refused",
    "D1": "A bad configuration file is one sentence with file and line",
    "D2": "Contradictory settings are refused before any model is loaded",
    "D3": "Dirt in the data is named or counted, never met in the middle of an epoch",
    "D4": "What training and validation data share is found",
    "D5": "No text breaks anything or passes for a special token",
}


def find_tests():
    """Row → its tests as (file, name, docstring or None), in the order of the files."""
    found = {row: [] for row in ROWS}
    for path in sorted(ROOT.glob("tests/**/test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for row in promises(node):
                found[row].append((path.relative_to(ROOT).as_posix(), node.name, ast.get_docstring(node)))
    return found


def promises(node):
    """The rows that a test is marked with."""
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    calls = [one for one in decorators if isinstance(one, ast.Call) and ast.unparse(one.func) == "pytest.mark.promise"]
    return [call.args[0].value for call in calls]


def run_tests(found):
    """Run them. Returns test name → counts of its cases by outcome."""
    chosen = [f"{path}::{name}" for tests in found.values() for path, name, _ in tests]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *chosen], cwd=ROOT, check=False)
        cases = ElementTree.parse(report).iter("testcase")
        outcomes = {}
        for case in cases:
            failed = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
            counts = outcomes.setdefault(case.get("name").partition("[")[0], Counter())
            counts[failed[0] if failed else "passed"] += 1
    return outcomes


def table_line(path, name, doc):
    """A row of a table, but for the result."""
    shown = name.removeprefix("test_").replace("_", " ")
    said = " ".join((doc or "").split()).replace("|", "\\|")
    return f"| [{shown}](../{path}) | {said}"


def page(found, outcomes):
    """The page."""
    lines = [
        "# Reliability",
        "",
        "Written by `make reliability` from the names, docstrings and results of the tests; not edited by hand.",
        "",
        "T: training, C: checkpoints and other saved files, D: configuration and data. Files from strangers are the",
        "subject of [SECURITY.md](../SECURITY.md), jobs of several processes of [scale.md](scale.md). `make torture`",
        "kills whole runs (`results/torture.json`), `make fuzz` throws arbitrary input at every reader.",
        "",
    ]
    for row, promise in ROWS.items():
        lines += [f"## {row} {promise}", "", "| test | what makes it fail | result |", "|---|---|---|"]
        for path, name, doc in found[row]:
            counts = ", ".join(f"{n} {kind}" for kind, n in sorted(outcomes[name].items()))
            lines.append(f"{table_line(path, name, doc)} | {counts} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    tests = find_tests()
    results = run_tests(tests)
    PAGE.write_text(page(tests, results), encoding="utf-8")
    bad = {name: dict(counts) for name, counts in results.items() if set(counts) != {"passed"}}
    sys.exit(f"not all pass: {bad}" if bad else 0)
