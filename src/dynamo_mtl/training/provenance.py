"""Records where a checkpoint comes from: its data and the revision of the code."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynamo_mtl.config.training_config import PipelineConfig
from dynamo_mtl.tasks.registry import make_tasks
from dynamo_mtl.tasks.tables import data_revision, rows_hash
from dynamo_mtl.training.examples import TaskTables


def described_data(config: PipelineConfig, tables: Mapping[str, TaskTables]) -> dict[str, dict[str, Any]]:
    """Metadata of the tasks' data: number of rows, hash of the rows, and commit if the data is from the hub."""
    tasks = make_tasks(config.tasks)
    found = {name: data_revision(tasks[name], config.data) for name in tables}
    return {
        "dataset_sizes": {name: len(own.train) for name, own in tables.items()},
        "data_hashes": {
            name: rows_hash(own.train, own.validation, unlabelled=own.unlabelled) for name, own in tables.items()
        },
        "data_revisions": {name: revision for name, revision in found.items() if revision is not None},
    }


def source_revision() -> str | None:
    """The git commit of the running source tree, ``-dirty`` if it has uncommitted changes; None outside of git."""
    place = Path(__file__).parent
    try:
        # If the package is installed inside another project, that project's commit does not apply to it.
        subprocess.run(["git", "ls-files", "--error-unmatch", __file__], cwd=place, capture_output=True, check=True)
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=place, capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=place,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")
