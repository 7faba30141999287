"""Shared fixtures: small systems over a tiny random encoder."""

import gc
import logging
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two processes test at once, and each starts others: with more threads than cores, all would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What evaluation prepares without a cache folder of its own; set before the library reads it.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="dynamo-tests-")

from pathlib import Path

import pytest
import torch
from tiny import make_tiny_roberta, small_system, tiny_system_settings

from dynamo_mtl.config import DynamoConfig, load_config
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.system import System
from dynamo_mtl.tasks.registry import make_tasks
from dynamo_mtl.training.examples import TaskTables
from dynamo_mtl.training.run import load_tables

torch.set_num_threads(1)
# Every phase of training ends with a collection of garbage: what was imported need not be looked at each time.
gc.freeze()


LONG = (
    "test_newcomer.py", "test_extras.py", "test_resume.py", "test_processes.py", "test_readme.py", "test_compare.py",
    "test_launch.py", "test_export.py", "test_exported.py", "test_hub.py",
)  # fmt: skip
"""Files that start first, so that no process of two is left with one of them at the end."""


def pytest_collection_modifyitems(items):
    """Put the long files first."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_unconfigure():
    """Leave nothing behind."""
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def logging_as_before():
    """Forget the handlers that commands set up: they write to a stream that ends with the test."""
    before = list(logging.root.handlers)
    yield
    logging.root.handlers[:] = before


@pytest.fixture(scope="session")
def tiny_roberta(tmp_path_factory) -> Path:
    """A saved random RoBERTa with a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_roberta")
    make_tiny_roberta(folder)
    return folder


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> Path:
    """Prepared sample data, shared by all tests of a session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_settings(tiny_roberta, cache_dir) -> dict:
    """Settings of a small system on the sample corpus, as a plain mapping."""
    return tiny_system_settings(tiny_roberta, cache_dir)


@pytest.fixture
def tiny_config_file(tmp_path, tiny_settings) -> Path:
    """The small system's settings as a file; logs and checkpoints go beside it."""
    settings = {
        **tiny_settings,
        "log_dir": str(tmp_path / "logs"),
        "checkpoint_dir": str(tmp_path / "checkpoints"),
        "visualization_dir": str(tmp_path / "visualizations"),
    }
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(settings), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def session_config(tmp_path_factory, tiny_settings) -> DynamoConfig:
    """The small system's configuration."""
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(dump_yaml(tiny_settings), encoding="utf-8")
    return load_config(path)


@pytest.fixture(scope="session")
def tables(session_config) -> dict[str, TaskTables]:
    """Sample data of all tasks."""
    return load_tables(session_config, make_tasks(session_config.tasks))


@pytest.fixture
def system(session_config, tables) -> System:
    """A fresh small system whose adapters are not no-ops."""
    return small_system(session_config, tables)
