"""Fill the tables of README.md and docs/ from the result files: ``python benchmarks/tables.py``.

A table stands between ``<!-- table: results/FILE.json KIND -->`` and ``<!-- /table -->``.
The pictures of the comparison and of the races are drawn anew too.
"""

import re
from pathlib import Path

import performance

from dynamo_mtl.evaluation.pictures import systems_picture
from dynamo_mtl.evaluation.report import (
    cost_rows,
    markdown,
    rejection_rows,
    result_facts,
    result_rows,
    routing_rows,
    trivial_text,
)
from dynamo_mtl.evaluation.result import read_result

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
KINDS = {
    "scores": lambda result: markdown(*result_rows(result)),
    "routing": lambda result: markdown(*routing_rows(result)),
    "rejection": lambda result: markdown(*rejection_rows(result)),
    "costs": lambda result: markdown(*cost_rows(result)),
    "facts": result_facts,
    "trivial": trivial_text,
}
TABLE = re.compile(r"<!-- table: (\S+) (\w+) -->\n.*?<!-- /table -->", flags=re.DOTALL)


def filled(page: str) -> str:
    """The page with every table as the result files have it."""

    def table(match: re.Match[str]) -> str:
        file, kind = match.groups()
        path = ROOT / file
        if kind in performance.KINDS:
            content = performance.KINDS[kind](performance.read_bench(path))
        else:
            content = KINDS[kind](read_result(path))
        return f"<!-- table: {file} {kind} -->\n\n{content}\n\n<!-- /table -->"

    return TABLE.sub(table, page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    for picture in performance.curve_pictures(performance.read_bench(ROOT / "results/bench-cpu.json")):
        (ROOT / "docs" / f"{picture.name}.png").write_bytes(picture.png())
    (ROOT / "docs" / "compare.png").write_bytes(systems_picture(read_result(ROOT / "results/compare-cpu.json")).png())
