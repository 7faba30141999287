"""Keeps the module names of version 0.1.0 for one release. Importing one warns, and gives the new module's contents."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "evaluation.added_task": "lifecycle.added_task_report",
    "evaluation.baselines": "evaluation.compared_systems",
    "evaluation.data_check": "setup.data_check",
    "evaluation.doctor": "setup.doctor",
    "evaluation.starter": "setup.init",
    "hub": "checkpoint.hub",
    "inference.editing": "lifecycle.editing",
    "inference.generation": "inference.decoding",
    "inference.merged_export": "export.merged",
    "inference.onnx_export": "export.onnx",
    "inference.pipeline": "inference.api",
    "inference.system": "system",
    "inference.system_config": "config.system_config",
    "inference.task_contract": "testing",
    "model.checkpoint": "checkpoint.folder",
    "model.lora": "model.adapter",
    "model.metadata": "checkpoint.metadata",
    "serving.settings": "config.serving_config",
    "settings": "strict_yaml",
    "tasks.ner": "tasks.token_classification",
    "tasks.wordings": "tasks.instruction_templates",
    "training.added_tasks": "lifecycle.add_task",
    "training.pipeline": "training.run",
    "training.settings": "config.training_config",
}
"""Old name → new name, both under ``dynamo_mtl``."""


class _Copy(Loader):
    """Fills a module of the old name with the contents of the new one."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        real = vars(importlib.import_module(self.name))
        kept = {name: value for name, value in real.items() if not name.startswith("__") or name == "__getattr__"}
        vars(module).update(kept)


class _Finder(MetaPathFinder):
    """Finds the modules of ``MOVED``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != "dynamo_mtl" or name not in MOVED:
            return None
        new = f"{package}.{MOVED[name]}"
        warnings.warn(f"{fullname} is now {new}; the old name goes with the next release", DeprecationWarning, 2)
        return ModuleSpec(fullname, _Copy(new))


def find_moved_modules() -> None:
    """Make the old names importable. The finder is asked only for modules that are not found otherwise."""
    sys.meta_path.append(_Finder())
