"""Lay out data for tasks that hardly differ: three domains of questions, three sources of Python code.

    python benchmarks/near_duplicate_tasks.py DATA FOLDER
    dynamo compare configs/near_duplicates.yaml data.root=FOLDER

DATA holds ``qa`` with rows that name their ``domain`` and ``code_generation`` with ``conala`` and ``pydoc`` in it, as
JSON lines. Rows are copied as they are; CoNaLa, which has no validation file, gives every tenth question to validation.
"""

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path

DOMAINS = ("new_wiki", "reddit", "amazon")


def read(path: Path) -> Iterator[dict]:
    """Rows of a file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def write(path: Path, rows: list[dict]) -> None:
    """Write rows, and say how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print(f"{len(rows):6d} rows  {path}")


def main(data: Path, folder: Path) -> None:
    """Write all splits of all tasks."""
    for split in ("train", "validation"):
        questions = list(read(data / "qa" / f"{split}.jsonl.gz"))
        for domain in DOMAINS:
            write(folder / f"qa_{domain}" / f"{split}.jsonl.gz", [row for row in questions if row["domain"] == domain])
        for name, place in (("code_django", "."), ("code_docstrings", "pydoc")):
            rows = list(read(data / "code_generation" / place / f"{split}.jsonl.gz"))
            write(folder / name / f"{split}.jsonl.gz", rows)
    rows = list(read(data / "code_generation" / "conala" / "train.jsonl.gz"))
    # All answers to one question go the same way.
    held_out = [int(row["question_id"]) % 10 == 0 for row in rows]
    for split, wanted in (("train", False), ("validation", True)):
        chosen = [row for row, held in zip(rows, held_out, strict=True) if held == wanted]
        write(folder / "code_conala" / f"{split}.jsonl.gz", chosen)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
