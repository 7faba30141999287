"""Saved models: what is written is what is read, and what does not fit is refused with words."""

import json

import pytest
import torch
from tiny import save_system

from dynamo_mtl.checkpoint.metadata import Metadata
from dynamo_mtl.errors import CheckpointError, ConfigError
from dynamo_mtl.storage import write_manifest
from dynamo_mtl.system import build_system, load_system
from dynamo_mtl.tasks.task import Example


@pytest.fixture
def saved(system, tmp_path):
    return save_system(system, tmp_path / "model", seed=3, train_seconds=1.5)


def test_a_checkpoint_reads_back_bit_for_bit(system, saved):
    loaded, metadata = load_system(saved, torch.device("cpu"))
    assert metadata.seed == 3
    theirs = loaded.model.state_dict()
    for name, tensor in system.model.state_dict().items():
        assert torch.equal(theirs[name], tensor), name
    expected = system.config.model_dump()
    assert loaded.config.model_dump() == {key: expected[key] for key in loaded.config.model_dump()}


def test_it_holds_no_pickle_and_leaves_nothing_beside_it(saved):
    suffixes = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".yaml", ".safetensors", ".txt", ".md"}
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_saving_again_replaces_it(system, saved):
    with torch.no_grad():
        system.model.bank["qa"].up["1_query"].add_(1)
    save_system(system, saved, seed=4)
    loaded, metadata = load_system(saved, torch.device("cpu"))
    assert metadata.seed == 4
    assert torch.equal(loaded.model.bank["qa"].up["1_query"], system.model.bank["qa"].up["1_query"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["sentiment"]}, "was trained for the tasks sentiment"),
        ({"weight_hash": "0" * 64}, "other backbone weights"),
        ({"format": 99}, "format 99 is newer"),
        ({"surprise": 1}, "not readable as checkpoint metadata"),
    ],
)
def test_a_mismatch_is_refused_with_words(saved, change, message):
    path = saved / "dynamo.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    write_manifest(saved)
    with pytest.raises(CheckpointError, match=message):
        load_system(saved, torch.device("cpu"))


@pytest.fixture
def before_copying(system, tmp_path):
    """A checkpoint whose heads have no pointer, and whose settings do not say so."""
    tasks = {**system.config.tasks}
    tasks["code_generation"] = tasks["code_generation"].model_copy(update={"copy_words": False})
    config = system.config.model_copy(update={"tasks": tasks})
    old = build_system(config, lambda task: [Example("a", None, "def f(x)")], torch.device("cpu"))
    metadata = Metadata(old.model.task_names, "x", old.backbone.weight_hash, 1, "final_model", 0, 0.0, format=2)
    old.save(tmp_path / "old", metadata, system.config.to_yaml())
    return tmp_path / "old"


def test_a_checkpoint_from_before_words_were_copied_is_read_without(system, before_copying):
    loaded, metadata = load_system(before_copying, torch.device("cpu"))
    assert metadata.format == 2
    assert loaded.model.head("code_generation").pointer is None
    assert not loaded.tasks["code_generation"].copies_words
    assert system.tasks["code_generation"].copies_words
    # Saved again it says so, and is read as what it is.
    loaded.save(before_copying, Metadata(**{**vars(metadata), "format": 3}), loaded.config.to_yaml())
    assert load_system(before_copying, torch.device("cpu"))[0].model.head("code_generation").pointer is None


def test_the_oldest_format_is_read_without_a_manifest(before_copying):
    path = before_copying / "dynamo.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    (before_copying / "manifest.json").unlink()
    assert load_system(before_copying, torch.device("cpu"))[1].format == 1


def test_a_broken_tensor_file_is_named(saved):
    (saved / "heads" / "qa.safetensors").write_bytes(b"not tensors")
    write_manifest(saved)
    with pytest.raises(CheckpointError, match=r"qa\.safetensors: cannot be read"):
        load_system(saved, torch.device("cpu"))


def test_a_folder_without_metadata_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_system(tmp_path, torch.device("cpu"))


def test_another_scaling_is_refused(system, saved):
    lora = system.config.lora_configs["qa"]
    changed = system.config.model_copy(
        update={"lora_configs": {**system.config.lora_configs, "qa": lora.model_copy(update={"alpha": 99.0})}}
    )
    with pytest.raises(CheckpointError, match=r"was trained with lora_alpha 3\.0, the configuration says 99\.0"):
        load_system(saved, torch.device("cpu"), changed)


def test_lengths_are_checked_when_a_checkpoint_is_used(system, saved):
    longer = system.config.model_copy(update={"data": system.config.data.model_copy(update={"max_source_length": 600})})
    with pytest.raises(ConfigError, match=r"max_source_length: found 600.*256 positions"):
        load_system(saved, torch.device("cpu"), longer)


def test_a_model_card_says_what_it_is(saved):
    card = (saved / "README.md").read_text()
    assert "| qa | qa | 6 | sample |" in card
    assert "seed 3" in card
    assert "Nothing: no result file was given." in card
