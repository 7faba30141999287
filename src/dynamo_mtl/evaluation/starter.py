"""A starter configuration for somebody's own tables: what each file is, guessed from its columns, and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from dynamo_mtl.data.sources import DataConfig, read_rows
from dynamo_mtl.errors import ConfigError, DataError
from dynamo_mtl.settings import dump_yaml
from dynamo_mtl.tasks.task import task_types

ROWS = 5000
"""Rows of a file that are looked at."""
MOST_LABELS = 50
REPEATED = 0.2
"""A column whose distinct values are at most that share of its rows may hold labels."""
SENTIMENTS = ({"negative", "positive"}, {"negative", "neutral", "positive"})
UPDATES = {"classification": (900, 32), "sentiment": (900, 32), "qa": (500, 16)}
"""Updates and examples an update of phase 1, for a first model in minutes on two cores; for the others ``WRITES``."""
WRITES = (500, 16)
GUESSED = ("qa", "code_generation", "summarization", "translation")
"""Types that are known by their columns, the most telling first."""


@dataclass
class Guess:
    """What a file is taken for."""

    name: str
    type: str
    path: str
    rows: int
    why: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the task, beside its type."""


def guess_task(path: Path) -> Guess:
    """Look at the first rows of a file.

    Raises:
        DataError: it cannot be read, or has no rows.
        ConfigError: no task type has such columns; the message says which types have which.
    """
    rows = [row for row, _ in islice(read_rows(str(path), "train", DataConfig()), ROWS)]
    if not rows:
        raise DataError(f"{path}: has no rows; the first line names the columns, each further one is an example")
    columns = list(rows[0])
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", path.name.partition(".")[0])[:50] or "task"
    name = name if name[0].isalpha() else f"task_{name}"  # not a number, which no key can be
    for kind in GUESSED:
        found = _known(columns, kind)
        if found is not None:
            return Guess(name, kind, str(path), len(rows), f"it has {' and '.join(found.values())}")
    labelled = _labelled(rows, columns)
    if labelled is not None:
        return _classification(name, path, rows, *labelled)
    known = "; ".join(f"{kind}: {', '.join(task_types()[kind].column_names)}" for kind in (*GUESSED, "classification"))
    raise ConfigError(
        f"{path}: has the columns {', '.join(map(str, columns))}, from which no task can be told; rename them, or "
        f"write the configuration by hand with tasks.NAME.columns. Types and their columns are {known}"
    )


def _known(columns: Sequence[str], kind: str) -> dict[str, str] | None:
    """Our column → the file's, if the file has all columns of a type under names that are known."""
    names = task_types()[kind].column_names
    found = {own: next((name for name in known if name in columns), None) for own, known in names.items()}
    return {own: name for own, name in found.items() if name} if all(found.values()) else None


def _labelled(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> tuple[str, str] | None:
    """The column of texts and that of labels: few values that come again, beside long ones that do not."""
    values = {name: [str(row[name]) for row in rows if row.get(name) is not None] for name in columns}
    distinct = {name: len(set(own)) for name, own in values.items() if own}
    labels = [n for n, count in distinct.items() if 2 <= count <= min(MOST_LABELS, max(2, REPEATED * len(rows)))]
    texts = [name for name in distinct if name not in labels]
    if not labels or not texts:
        return None
    text = max(texts, key=lambda name: sum(map(len, values[name])))
    named = [name for name in labels if name in task_types()["classification"].column_names["label"]]
    return text, (named or sorted(labels, key=lambda name: distinct[name]))[0]


def _classification(name: str, path: Path, rows: Sequence[Mapping[str, Any]], text: str, label: str) -> Guess:
    counts = Counter(str(row[label]) for row in rows if row.get(label) is not None)
    labels = sorted(counts, key=lambda label: (not label.isdecimal(), int(label) if label.isdecimal() else 0, label))
    is_numbers = labels == [str(number) for number in range(len(labels))]
    is_sentiment = set(labels) in SENTIMENTS or (is_numbers and "sentiment" in name.lower())
    kind = "sentiment" if is_sentiment else "classification"
    names = task_types()[kind].column_names
    columns = {own: given for own, given in (("text", text), ("label", label)) if given not in names[own]}
    settings: dict[str, Any] = {"columns": columns} if columns else {}
    if is_numbers and kind == "classification":
        settings["labels"] = [f"class {number}" for number in labels]
    elif not is_numbers:
        settings["labels"] = labels
    why = f"'{label}' has {len(labels)} values that come again, beside the texts of '{text}'"
    return Guess(name, kind, str(path), len(rows), why, settings)


def starter_config(files: Sequence[Path], backbone: str) -> str:
    """A commented configuration for the tasks of some files.

    Raises:
        ConfigError, DataError: as ``guess_task``; or two files of the same name.
    """
    guesses = [guess_task(path) for path in files]
    names = [guess.name for guess in guesses]
    again = next((name for name in names if names.count(name) > 1), None)
    if again is not None:
        raise ConfigError(f"{again}: two files have this name, which is to be the task's; rename one of them")
    lines = [
        "# A starting point, written by dynamo init. Check what each file was taken for, then:",
        "#   dynamo data check config.yaml      what is wrong with the data, before any training",
        "#   dynamo train config.yaml           minutes on two cores",
        "#   dynamo evaluate runs/own/checkpoints/final_model",
        "#   dynamo serve runs/own/checkpoints/final_model",
        "data:",
        *(f"  {guess.name}_data_path: {_scalar(guess.path)}" for guess in guesses),
        "  max_source_length: 256   # tokens of a window; longer inputs are cut into windows",
        "",
        "tasks:",
    ]
    for guess in guesses:
        steps, batch = UPDATES.get(guess.type, WRITES)
        lines += [f"  {guess.name}:   # {guess.rows} rows were looked at; {guess.why}", f"    type: {guess.type}"]
        if Path(guess.path).is_file():
            lines.append("    validation_share: 0.1   # of the file, held out to choose and judge by")
        for key, value in guess.settings.items():
            lines.append(f"    {key}: {_scalar(value)}")
        if guess.type == "classification":
            lines.append("    # instructions: [Which topic is this?]   # your own wordings, if users write some")
        lines.append(
            f"    training: {{max_steps: {steps}, batch_size: {batch}, num_epochs: 20}}   # more steps: better, slower"
        )
    lines += [
        "",
        "model:",
        f"  base_model_name: {_scalar(backbone)}   # or roberta-base, or a folder with a RoBERTa or BERT encoder",
        "",
        "lora_configs:   # each task's adapter; a higher rank holds more",
        *(f"  {g.name}: {{rank: 16, alpha: 32, dropout: 0.05, target_modules: all-linear}}" for g in guesses),
        "",
        "router:",
        "  hidden_sizes: [256, 128]",
        "  dropout: 0.3",
        "  on_rejection: best_guess   # or error: refuse what is like none of the tasks",
        "",
        "training:",
        "  lora_lr: 1e-3",
        "  head_lr: 1e-3",
        "  eval_every: 100",
        "  router: {examples_per_task: 1000, feature_epochs: 10, mixture_steps: 0}",
        "  joint: {max_steps: 0}   # phase 3, everything together; none by default, since it did not help on real data",
        "",
        "checkpoint_dir: runs/own/checkpoints",
        "log_dir: runs/own/logs",
        "",
    ]
    return "\n".join(lines)


def _scalar(text: Any) -> str:
    """A value on one line."""
    return dump_yaml(text, on_one_line=True).removesuffix("...\n").strip()
