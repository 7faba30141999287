"""Arbitrary input gives a result or a ``DynamoError`` with a sentence, never another exception.

Some hundred cases here, the same ones each time; ``make fuzz`` runs 20,000 new ones.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import save_system, small_system

from dynamo_mtl.config import load_config
from dynamo_mtl.data.data_config import DataConfig
from dynamo_mtl.data.sources import open_table
from dynamo_mtl.errors import DynamoError
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.storage import write_manifest
from dynamo_mtl.system import load_system
from dynamo_mtl.tasks.registry import make_tasks

CASES = int(os.environ.get("FUZZ_CASES", "0"))
"""In all; 0 runs the small fixed set."""
CPU = torch.device("cpu")


def cases(share, few):
    """Hypothesis settings for a share of all cases."""
    return settings(
        max_examples=max(1, int(CASES * share)) if CASES else few,
        derandomize=not CASES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def refused_or_done(action):
    """Run it; only a refusal with a sentence may come."""
    sentence = "none"
    try:
        return action()
    except DynamoError as error:
        sentence = str(error)
    assert sentence.strip()
    assert sentence.isprintable()
    return None


keys = st.sampled_from(
    ["data", "tasks", "model", "lora_configs", "router", "training", "log_dir", "sentiment", "qa", "rank", "alpha",
     "type", "top_k", "seed", "batch_size", "joint", "sentiment_data_path", "paths", "temperature", "generation"]
) | st.text(max_size=8)  # fmt: skip
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just("sample")
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


@cases(0.2, 80)
@given(st.text(max_size=300) | st.binary(max_size=200))
def test_any_text_as_configuration(tmp_path_factory, text):
    path = _scratch(tmp_path_factory) / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    refused_or_done(lambda: load_config(path))


@cases(0.2, 80)
@given(changes=st.lists(st.tuples(st.lists(keys, min_size=1, max_size=3), values), min_size=1, max_size=3))
def test_a_configuration_with_anything_anywhere(tmp_path_factory, tiny_settings, changes):
    changed = json.loads(json.dumps(tiny_settings))
    for place, value in changes:
        section = changed
        for key in place[:-1]:
            section = section.setdefault(key, {}) if isinstance(section.get(key, {}), dict) else section
        section[place[-1]] = value
    path = _scratch(tmp_path_factory) / "c.yaml"
    path.write_text(yaml.safe_dump(changed), encoding="utf-8")
    refused_or_done(lambda: load_config(path))


rows = st.lists(
    st.dictionaries(
        st.sampled_from(["text", "label", "question", "context", "answers", "source", "target", "document", "summary"])
        | st.text(max_size=5),
        values | st.sampled_from([0, 1, "positive", {"text": ["a"], "answer_start": [0]}, "a b a"]),
        max_size=5,
    ),
    max_size=4,
)
contents = (
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass"))
    | rows.map(lambda r: "".join(json.dumps(row) + "\n" for row in r).encode())
    | rows.map(lambda r: json.dumps(r).encode())
)


@cases(0.3, 120)
@given(content=contents, suffix=st.sampled_from(["jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet"]), pick=st.data())
def test_any_bytes_as_data(tmp_path_factory, session_config, content, suffix, pick):
    tasks = make_tasks(session_config.tasks)
    task = tasks[pick.draw(st.sampled_from(sorted(tasks)))]
    folder = _scratch(tmp_path_factory)
    (folder / f"train.{suffix}").write_bytes(content)
    config = DataConfig(cache_dir=str(folder / "cache"))
    table = refused_or_done(lambda: open_table(str(folder), "train", task.read, task.name, config))
    if table is not None:
        assert len(table) > 0


@pytest.fixture(scope="module")
def saved(session_config, tables, tmp_path_factory):
    return save_system(small_system(session_config, tables), tmp_path_factory.mktemp("saved") / "model")


def _replace_json(path: Path, place, value):
    content = json.loads(path.read_text())
    if isinstance(content, dict) and content:
        content[sorted(content)[place % len(content)]] = value
    path.write_text(json.dumps(content))


@cases(0.1, 60)
@given(
    number=st.integers(0, 10**6), place=st.integers(0, 10**6), patch=st.binary(min_size=1, max_size=40),
    value=values, cut=st.booleans(), vouch=st.booleans(),
)  # fmt: skip
def test_a_checkpoint_with_a_file_changed(saved, tmp_path_factory, number, place, patch, value, cut, vouch):
    """With a manifest that fits, as a stranger would write, or without."""
    folder = _scratch(tmp_path_factory) / "model"
    shutil.copytree(saved, folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "README.md")
    path = files[number % len(files)]
    if path.suffix == ".json" and place % 2:
        _replace_json(path, place, value)
    else:
        content = path.read_bytes()
        at = place % max(1, len(content))
        path.write_bytes(content[:at] + patch + (b"" if cut else content[at + len(patch) :]))
    if vouch and path.name != "manifest.json":
        write_manifest(folder)
    refused_or_done(lambda: load_system(folder, CPU))


@pytest.fixture(scope="module")
def answering(saved):
    return DynamoInference(saved)


texts = st.text(max_size=200) | st.text(alphabet="</s>[]CLS \ud800\0\n", max_size=60) | st.just("x" * 5000)


@cases(0.2, 80)
@given(
    text=texts, context=st.none() | texts, instruction=st.none() | texts, hint=st.none() | st.text(max_size=9) | keys
)
def test_any_text_is_answered(answering, text, context, instruction, hint):
    answer = refused_or_done(
        lambda: answering.predict(
            text, context=context, instruction=instruction, task_hint=hint, return_routing_info=True
        )
    )
    if answer is None:
        asks_without_passage = context is None and hint in (None, "qa")
        assert asks_without_passage or (hint is not None and hint not in answering.task_names)
    else:
        json.dumps(answer)
        assert sum(answer["routing_info"]["probabilities"].values()) == pytest.approx(1, abs=1e-4)


def _scratch(factory):
    """An empty folder, the same one each time, so that thousands of cases leave no thousands of folders."""
    folder = factory.getbasetemp() / "fuzz"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
