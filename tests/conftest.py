"""Shared fixtures: a tiny random RoBERTa with a byte-level tokenizer of its own, and small systems over it."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from dynamo_mtl.config import DynamoConfig, load_config
from dynamo_mtl.data.samples import sample_rows
from dynamo_mtl.inference.system import System, build_system, make_tasks
from dynamo_mtl.settings import dump_yaml
from dynamo_mtl.training.examples import TaskTables
from dynamo_mtl.training.pipeline import load_tables

torch.set_num_threads(1)

TASKS = ("sentiment", "qa", "summarization", "code_generation", "translation")


@pytest.fixture(scope="session")
def tiny_roberta(tmp_path_factory) -> Path:
    """A saved random RoBERTa, 4 layers of width 32, with a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_roberta")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    texts = [str(v) for t in TASKS for r in list(sample_rows(t, "train"))[:200] for v in r.values()]
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=backend.get_vocab_size(), hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=258, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5,
        initializer_range=0.2,
    )  # fmt: skip
    RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> Path:
    """Prepared sample data, shared by all tests of a session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_settings(tiny_roberta, cache_dir) -> dict:
    """Settings of a small system on the sample corpus, as a plain mapping."""
    adapters = {name: {"rank": 4, "alpha": 8, "dropout": 0.1} for name in TASKS}
    adapters["qa"] = {"rank": 6, "alpha": 3, "use_rslora": True, "dropout": 0.0, "target_modules": ["query", "value"]}
    generation = {"target_vocabulary": 300, "max_target_length": 40, "generation": {"max_new_tokens": 12}}
    return {
        "data": {
            **{f"{name}_data_path": "sample" for name in TASKS},
            "cache_dir": str(cache_dir),
            "max_source_length": 96,
            "window_overlap": 16,
        },
        "tasks": {
            **{name: {"train_examples": 60, "validation_examples": 12} for name in ("sentiment", "qa")},
            **{
                name: {"train_examples": 60, "validation_examples": 12, **generation}
                for name in ("summarization", "code_generation", "translation")
            },
        },
        "model": {"base_model_name": str(tiny_roberta), "hidden_size": 32, "tap_layer": 1, "precision": "fp32"},
        "lora_configs": adapters,
        "router": {"hidden_sizes": [16], "dropout": 0.1},
        "training": {
            "num_epochs": 1, "max_steps": 6, "batch_size": 8, "eval_every": 3, "eval_examples": 6, "log_every": 2,
            "router": {"examples_per_task": 20, "feature_epochs": 3, "mixture_steps": 2},
            "joint": {"max_steps": 3, "examples_per_task": 10},
        },
    }  # fmt: skip


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
    return load_tables(session_config, make_tasks(session_config))


@pytest.fixture
def system(session_config, tables) -> System:
    """A fresh small system whose adapters are not no-ops."""
    torch.manual_seed(0)
    built = build_system(
        session_config, lambda task: [r["target"] for r in tables[task.name].train], torch.device("cpu")
    )
    with torch.no_grad():
        for parameter in built.model.bank.parameters():
            parameter.normal_(std=0.2)
    return built
