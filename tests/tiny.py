"""A random RoBERTa, 4 layers of width 32, and the settings of small systems over it."""

import dataclasses

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from dynamo_mtl.checkpoint.metadata import Metadata
from dynamo_mtl.config.system_config import SystemConfig
from dynamo_mtl.config.validation import validate
from dynamo_mtl.data.samples import sample_rows
from dynamo_mtl.data.samples.classification import TOPICS
from dynamo_mtl.data.samples.multi_label import ASPECTS
from dynamo_mtl.system import build_system
from dynamo_mtl.tasks.registry import task_types
from dynamo_mtl.tasks.tables import all_examples

TASKS = ("sentiment", "qa", "summarization", "code_generation", "translation")


def make_tiny_roberta(folder):
    """Save the model, with a byte-level tokenizer of its own."""
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


def tiny_system_settings(backbone, cache_dir):
    """All five tasks on the sample corpus, as a plain mapping."""
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
        "model": {"base_model_name": str(backbone), "hidden_size": 32, "tap_layer": 1, "precision": "fp32"},
        "lora_configs": adapters,
        "router": {"hidden_sizes": [16], "dropout": 0.1},
        "training": {
            "num_epochs": 1, "max_steps": 6, "batch_size": 8, "eval_every": 3, "eval_examples": 6, "log_every": 2,
            "router": {"examples_per_task": 20, "feature_epochs": 3, "mixture_steps": 2, "general_texts": 20},
            "joint": {"max_steps": 3, "examples_per_task": 10},
        },
    }  # fmt: skip


def without_dropout(settings, names):
    """The settings of a system of some of the tasks that draws no random numbers while it trains."""
    data = {k: v for k, v in settings["data"].items() if not k.endswith("_data_path")}
    tasks = {n: settings["tasks"][n] for n in names}
    if "sentiment" in tasks:
        tasks["sentiment"] = {**tasks["sentiment"], "classifier_dropout": 0.0}
    return {
        **settings,
        "data": data | {f"{n}_data_path": "sample" for n in names},
        "tasks": tasks,
        "lora_configs": {n: {**settings["lora_configs"][n], "dropout": 0.0} for n in names},
        "router": {"hidden_sizes": [16], "dropout": 0.0},
    }


def small_system(config, tables):
    """A fresh system of a configuration, whose adapters are not no-ops and the same each time."""
    torch.manual_seed(0)
    built = build_system(config, lambda task: all_examples(tables[task.name].train), torch.device("cpu"))
    with torch.no_grad():
        for parameter in built.model.bank.parameters():
            parameter.normal_(std=0.2)
    return built


def save_system(system, folder, **facts):
    """A checkpoint of a system as it stands, said to be of a finished run; ``facts`` are what its metadata has else."""
    metadata = Metadata(list(system.tasks), system.backbone.name, system.backbone.weight_hash, 1, "final_model", 0, 0.0)
    system.save(folder, dataclasses.replace(metadata, **facts), system.config.to_yaml())
    return folder


def answer_by_text(system):
    """Heads that write, drawn so that an untrained system's answers differ from text to text."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name in ("summarization", "code_generation", "translation"):
            system.model.head(name).embeddings.normal_(std=0.4)
            system.model.head(name).bias.normal_(std=0.3)


KINDS = {
    "topics": {"type": "classification", "labels": list(TOPICS), "pooling": "first"},
    "aspects": {"type": "multi_label", "labels": list(ASPECTS), "pooling": "first"},
    "marks": {"type": "regression", "score_range": [0, 10], "pooling": "first"},
    "levels": {"type": "regression", "score_range": [0, 10], "ordinal": True},
    "quiz": {"type": "multiple_choice"},
    "names": {"type": "token_classification", "kinds": ["PER", "ORG", "LOC"]},
    "faq": {"type": "qa", "no_answer": True},
    "sums": {"type": "summarization", "target_vocabulary": 300, "max_target_length": 20,
             "generation": {"max_new_tokens": 4}},
}  # fmt: skip
"""A task with every kind of label, and one that writes."""


def kinds_examples(name):
    """Eight examples of a task of ``KINDS``."""
    kind, settings = task_types()[KINDS[name]["type"]], KINDS[name]
    task = kind(name, validate(kind.Config, settings, name))
    rows = [row for _, row in zip(range(8), sample_rows(settings["type"], "train"), strict=False)]
    return [task.read(row, "row") for row in rows]


def make_kinds_system(model_settings):
    """One untrained system with the tasks of ``KINDS``, whose adapters are not no-ops."""
    config = {
        "data": {"paths": dict.fromkeys(KINDS, "unused"), "max_source_length": 48, "window_overlap": 16},
        "tasks": KINDS, "model": model_settings, "router": {"hidden_sizes": [8]},
        "lora_configs": {name: {"rank": 2, "dropout": 0.0} for name in KINDS},
    }  # fmt: skip
    torch.manual_seed(0)
    checked = validate(SystemConfig, config, "test")
    built = build_system(checked, lambda task: kinds_examples(task.name), torch.device("cpu"))
    with torch.no_grad():
        for parameter in built.model.bank.parameters():
            parameter.normal_(std=0.2)
    for name, task in built.tasks.items():
        task.study(built.model.head(name), kinds_examples(name))
    built.model.eval()
    return built


def nearly(answer, tolerance=1e-4):
    """An answer to compare with, whose numbers may differ by rounding, also those in lists and mappings."""
    if isinstance(answer, dict):
        return {key: nearly(value, tolerance) for key, value in answer.items()}
    if isinstance(answer, list):
        return [nearly(value, tolerance) for value in answer]
    return pytest.approx(answer, abs=tolerance) if isinstance(answer, float) else answer
