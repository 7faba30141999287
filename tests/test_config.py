"""One configuration on top of another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynamo_mtl.config import load_config
from dynamo_mtl.config.identity import changed_setting, settings_of
from dynamo_mtl.errors import ConfigError

BASE = """
data: {qa_data_path: sample, sentiment_data_path: sample}
tasks:
  qa: {training: {max_steps: 100, batch_size: 4}}
training: {batch_size: 8, seed: 1}
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "inner").mkdir()
    return tmp_path


def test_a_file_extends_another_key_by_key_and_overrides_come_last(place):
    (place / "inner" / "middle.yaml").write_text("extends: ../base.yaml\ntraining: {seed: 2, max_grad_norm: 0.5}\n")
    (place / "top.yaml").write_text("extends: inner/middle.yaml\ntasks: {qa: {training: {max_steps: 7}}}\n")
    config = load_config(place / "top.yaml", ["training.seed=3"])
    assert (config.training.batch_size, config.training.seed, config.training.max_grad_norm) == (8, 3, 0.5)
    assert (config.tasks["qa"].training.max_steps, config.tasks["qa"].training.batch_size) == (7, 4)
    assert list(config.tasks) == ["qa", "sentiment"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: 3", "top.yaml: extends: expected the path of another configuration file, found 3"),
        ("extends: none.yaml", "none.yaml: cannot be read"),
        ("extends: top.yaml", "top.yaml: extends: top.yaml is this file or extends it"),
        ("extends: inner/back.yaml", "back.yaml: extends: ../top.yaml is this file or extends it"),
        ("extends: base.yaml\ntrainin: {}", "unknown key 'trainin'"),
    ],
)
def test_a_wrong_base_is_said(place, text, message):
    (place / "inner" / "back.yaml").write_text("extends: ../top.yaml")
    (place / "top.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(place / "top.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize("file", ["compare", "quickstart", "minilm"])
def test_settings_that_a_result_keeps_are_compared_but_for_where_the_data_lies(file):
    """Fails if a file's settings differ from themselves, or another learning rate is not seen."""
    path = Path(__file__).parent.parent / "configs" / f"{file}.yaml"
    kept = json.loads(json.dumps(settings_of(load_config(path, ["data.root=/somewhere", "log_dir=elsewhere"]))))
    assert changed_setting(kept, load_config(path)) is None
    found = changed_setting(kept, load_config(path, ["training.lora_lr=0.5"]))
    assert found is not None
    assert (found[0], found[2]) == ("training.lora_lr", 0.5)
    older = {**kept, "training": {k: v for k, v in kept["training"].items() if k != "warmup_ratio"}}
    assert changed_setting(older, load_config(path)) is None  # what did not exist then had its default
