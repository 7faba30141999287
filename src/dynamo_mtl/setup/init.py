"""Write a starter configuration for a user's own tables, with the task of each file and the reason for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynamo_mtl.data.samples import SAMPLE
from dynamo_mtl.data.text_files import Reading
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.setup.guess import guess_task
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.tasks.recognition import Guess
from dynamo_mtl.tasks.registry import task_types

WANTED = 50
"""Validation rows to hold out of a small file, within the limits of ``SHARES``."""
SHARES = (0.1, 0.3)
"""Smallest and largest share of a file that is held out."""
TEXTS, FORMS = 1000, 4
"""Texts of each task that the router reads, and in how many forms: plain, instructed, conflicting, viewed."""
UPDATES, FEATURES, EPOCHS = 600, 64, (10, 60)
"""Updates of the router that should be made, the features of one, and fewest and most passes over them."""


def guess_tasks(files: Sequence[Path], columns: Sequence[str] = (), reading: Reading | None = None) -> list[Guess]:
    """Guess the task of each file.

    Args:
        files: tables, one for each task.
        columns: columns that the user has chosen, as ``NAME.text=COLUMN``.
        reading: how the files are written.

    Raises:
        ConfigError, DataError: as ``guess_task``; or two files of the same name.
    """
    chosen: dict[str, dict[str, str]] = {}
    for one in columns:
        place, equals, given = one.partition("=")
        name, dot, own = place.rpartition(".")
        if not equals or not dot:
            raise ConfigError(f"--column: found '{one}', expected NAME.text=COLUMN, where NAME is the file's")
        chosen.setdefault(name, {})[own] = given
    found = [guess_task(path, chosen.get(path.name.partition(".")[0]), reading) for path in files]
    names = [guess.name for guess in found]
    again = next((name for name in names if names.count(name) > 1), None)
    if again is not None:
        raise ConfigError(f"{again}: two files have this name, which is to be the task's; rename one of them")
    return found


def starter_config(guesses: Sequence[Guess], backbone: str, reading: Reading | None = None) -> str:
    """A commented configuration for the tasks of some files."""
    written = (reading or Reading()).model_dump(exclude_none=True)
    lines = [
        "# A starting point, written by dynamo init. Check what each file was taken for, then:",
        "#   dynamo data check config.yaml      what is wrong with the data, before any training",
        "#   dynamo train config.yaml           minutes on two cores",
        "#   dynamo evaluate runs/own/checkpoints/final_model",
        "#   dynamo serve runs/own/checkpoints/final_model",
        "data:",
        *(f"  {guess.name}_data_path: {_scalar(_never_sample(guess.path))}" for guess in guesses),
        *(
            ["  bad_rows: skip   # leave out rows without a label, and say how many"]
            if any(g.missing for g in guesses)
            else []
        ),
        "  max_source_length: 256   # tokens of a window; longer inputs are cut into windows",
        "",
        "tasks:",
    ]
    for guess in guesses:
        own = task_types()[guess.type].starter_training
        lines += [f"  {guess.name}:   # {guess.rows} rows; {guess.why}", f"    type: {guess.type}"]
        lines += [f"    # {note}" for note in guess.notes]
        if guess.held_out:
            lines.append(f"    validation_share: {_share(guess.rows)}   # of the file, held out to choose and judge by")
        if written:
            lines.append(f"    reading: {_scalar(written)}")
        for key, value in guess.settings.items():
            lines.append(f"    {key}: {_scalar(value)}")
        if guess.settings.get("labels"):
            lines.append("    # description: what the labels are about   # instructions name it, else the task's name")
            lines.append("    # instructions: [Which topic is this?]   # your own, if users write some")
        lines.append(f"    training: {_scalar({**own, 'num_epochs': 20})}   # more steps: better, slower")
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
        f"  router: {{examples_per_task: {TEXTS}, feature_epochs: {_epochs(guesses)}, mixture_steps: 0}}",
        "  joint: {max_steps: 0}   # phase 3, everything together; none by default, since it did not help on real data",
        "",
        "checkpoint_dir: runs/own/checkpoints",
        "log_dir: runs/own/logs",
        "",
    ]
    return "\n".join(lines)


def _epochs(guesses: Sequence[Guess]) -> int:
    """Passes of the router over its features: more of few, so that it makes ``UPDATES`` in any case."""
    inputs = FORMS * sum(min(guess.rows, TEXTS) for guess in guesses)
    return min(EPOCHS[1], max(EPOCHS[0], math.ceil(UPDATES * FEATURES / max(1, inputs))))


def _scalar(text: Any) -> str:
    """A value on one line."""
    return dump_yaml(text, on_one_line=True).removesuffix("...\n").strip()


def _share(rows: int) -> float:
    least, most = SHARES
    return min(most, max(least, math.ceil(100 * (WANTED + 2) / max(1, rows)) / 100))  # parts of labels are rounded down


def _never_sample(path: str) -> str:
    """Return a path that is not taken for the built-in corpus, even if its folder has the same name."""
    return f"./{path}" if path == SAMPLE else path
