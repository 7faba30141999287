"""Folders made by PEFT itself, of every kind: each module's update is PEFT's, or the folder is refused by name."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    RobertaModel,
)

from dynamo_mtl.checkpoint.peft_format import PATHS
from dynamo_mtl.checkpoint.peft_import import import_adapter
from dynamo_mtl.errors import CheckpointError, ConfigError
from dynamo_mtl.model.backbone import read_encoder_config

WRAPPERS = {
    "bare": lambda base: RobertaModel.from_pretrained(base, add_pooling_layer=False),
    "auto": AutoModel.from_pretrained,
    "seq": AutoModelForSequenceClassification.from_pretrained,
    "tok": AutoModelForTokenClassification.from_pretrained,
    "qa": AutoModelForQuestionAnswering.from_pretrained,
    "mlm": AutoModelForMaskedLM.from_pretrained,
}
FIRST = "encoder.layer.0.attention.self.query"
IN = "roberta."
"""What a wrapper puts in front of the encoder's names."""
PATTERNS = {
    "full path": lambda p: {p + FIRST: 40},
    "suffix": lambda p: {"query": 40},
    "longer suffix": lambda p: {"self.query": 40, "value": 2},
    "layer": lambda p: {"layer.2.attention.self.value": 40},
    "anchored full path": lambda p: {"^" + p + FIRST: 40},
    "path of a bare encoder": lambda p: {"^" + FIRST: 40},
    "expression": lambda p: {r".*layer\.[12]\..*query": 40},
    "alternatives": lambda p: {r"layer\.(0|3)\.attention\.self\.(query|value)": 40},
    "digits": lambda p: {r"layer\.\d+\.attention\.self\.query": 40},
    "part of a name": lambda p: {"uery": 40},
    "nothing": lambda p: {"dense": 40},
}
EQUAL = {
    **{f"wrapped as {wrapper}": (wrapper, {}) for wrapper in WRAPPERS},
    "for features": ("auto", {"task_type": "FEATURE_EXTRACTION"}),
    **{f"alpha by {k}, {w}": (w, {"alpha_pattern": make("" if w == "bare" else IN)})
       for k, make in PATTERNS.items() for w in ("bare", "seq")},
    **{f"rank by {k}, {w}": (w, {"rank_pattern": {n: min(r, 7) for n, r in make("" if w == "bare" else IN).items()}})
       for k, make in PATTERNS.items() for w in ("bare", "tok")},
    "rank and alpha by different patterns": ("qa", {"rank_pattern": {"query": 7}, "alpha_pattern": {IN + FIRST: 40}}),
    "rank-stabilised": ("auto", {"use_rslora": True}),
    "rank-stabilised with patterns": (
        "seq", {"use_rslora": True, "rank_pattern": {f"^{IN}{FIRST}": 9}, "alpha_pattern": {f"^{IN}{FIRST}": 40}}),
    "a negative alpha": ("bare", {"alpha_pattern": {"query": -3}}),
    "rank 1": ("bare", {"r": 1}),
    "rank above the width": ("bare", {"r": 64}),
    "all linear layers": ("bare", {"target_modules": "all-linear"}),
    "dense": ("bare", {"target_modules": ["dense"]}),
    "output.dense, which is two": ("bare", {"target_modules": ["output.dense"]}),
    "an expression of targets": ("seq", {"target_modules": r".*layer\.[02]\..*\.(query|key)"}),
    "full names of targets": ("seq", {"target_modules": [IN + FIRST, "intermediate.dense"]}),
    "excluded by name": ("bare", {"target_modules": "all-linear", "exclude_modules": [FIRST, "key"]}),
    "excluded by expression": (
        "tok", {"target_modules": ["query", "dense"], "exclude_modules": r".*attention\.output.*|.*classifier.*"}),
    "a layer": ("bare", {"layers_to_transform": 2}),
    "layers of a pattern": ("seq", {"layers_to_transform": [1, 3], "layers_pattern": "layer"}),
    "layers of patterns": ("tok", {"layers_to_transform": [1, 2], "layers_pattern": ["h", "layer"]}),
    "a full name outside of the layers": ("bare", {"layers_to_transform": [2], "target_modules": [FIRST, "value"]}),
    "pickled": ("bare", {"pickled": True}),
    "pickled with a pattern": ("seq", {"pickled": True, "alpha_pattern": {IN + FIRST: 40}}),
    "gaussian": ("bare", {"init_lora_weights": "gaussian"}),
}  # fmt: skip
REFUSED = {
    "alphas that overlap": ("bare", {"alpha_pattern": {"query": 40, FIRST: 2}}, "alpha_pattern gives"),
    "DoRA": ("seq", {"use_dora": True}, "use_dora"),
    "biases": ("bare", {"bias": "all"}, "bias"),
    "a bias of B": ("bare", {"lora_bias": True}, "lora_bias"),
    "embeddings": ("bare", {"target_modules": ["query", "word_embeddings"]}, "word_embeddings"),
    "saved norms": ("bare", {"modules_to_save": ["LayerNorm"]}, "modules_to_save"),
    "a head": ("tok", {"modules_to_save": ["classifier"]}, "modules_to_save"),
    "a sequence classifier": ("seq", {"task_type": "SEQ_CLS"}, "modules_to_save"),
    "tokens": ("bare", {"trainable_token_indices": [5, 6]}, "trainable_token_indices"),
    "PiSSA": ("bare", {"init_lora_weights": "pissa"}, "init_lora_weights"),
    "OLoRA": ("bare", {"init_lora_weights": "olora"}, "init_lora_weights"),
    "a kind to come": ("bare", {"edit": {"quux_config": {"a": 1}}}, "quux_config"),
    "fewer targets than weights": ("bare", {"edit": {"target_modules": ["query"]}}, "target_modules"),
    "excluded with weights": ("bare", {"edit": {"exclude_modules": ["value"]}}, "exclude_modules"),
    "other layers than the weights'": ("bare", {"edit": {"layers_to_transform": [1]}}, "layers_to_transform"),
    "another rank than the weights'": ("bare", {"edit": {"r": 8}}, "rank_pattern"),
    "an alpha that is no number": ("bare", {"edit": {"alpha_pattern": {"query": float("nan")}}}, "alpha_pattern"),
    "a pattern that takes for ever": (
        "bare", {"edit": {"alpha_pattern": {r"(\w|.)" * 26 + "[^a-z.0-9]": 3}}}, "takes too long to match"),
    "no pattern": ("bare", {"edit": {"alpha_pattern": {"(": 3}}}, "is no pattern"),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tiny_roberta):
    """Each wrapper's model, made once; an adapter is put into a copy."""
    return {name: make(tiny_roberta) for name, make in WRAPPERS.items()}


def _made(models, wrapper, folder, pickled=False, edit=None, **settings):
    torch.manual_seed(5)
    chosen = {"r": 4, "lora_alpha": 6, "target_modules": ["query", "value"], **settings}
    model = get_peft_model(copy.deepcopy(models[wrapper]), LoraConfig(**chosen))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder, safe_serialization=not pickled)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **(edit or {})}))
    return model


def _imported(tiny_roberta, folder):
    def refuse(sentence):
        raise CheckpointError(sentence)

    return import_adapter(folder, read_encoder_config(tiny_roberta), str(tiny_roberta), 0, refuse)


@pytest.mark.filterwarnings("ignore")  # PEFT warns of what it is asked for
@pytest.mark.parametrize("case", EQUAL)
def test_each_module_is_changed_as_peft_changes_it(case, models, tiny_roberta, tmp_path):
    wrapper, settings = EQUAL[case]
    model = _made(models, wrapper, tmp_path / "peft", **settings)
    adapter = _imported(tiny_roberta, tmp_path / "peft")
    encoder = model.get_base_model()
    encoder = getattr(encoder, "roberta", encoder).encoder
    changed = 0
    for layer in range(4):
        for site, place in PATHS.items():
            module = encoder.get_submodule(f"layer.{layer}.{place}")
            pair = adapter.pair(layer, site) if site in adapter.config.sites else None
            own = torch.zeros(1) if pair is None else adapter.config.scaling * pair[1].detach() @ pair[0].detach()
            theirs = module.get_delta_weight("default").detach() if hasattr(module, "lora_A") else torch.zeros(1)
            torch.testing.assert_close(*torch.broadcast_tensors(own, theirs), atol=1e-5, rtol=0)
            changed += hasattr(module, "lora_A")
    assert changed


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_plain_lora_is_refused_by_name(case, models, tiny_roberta, tmp_path):
    wrapper, settings, name = REFUSED[case]
    _made(models, wrapper, tmp_path / "peft", **settings)
    with pytest.raises((CheckpointError, ConfigError), match=name):
        _imported(tiny_roberta, tmp_path / "peft")


def test_a_pickle_runs_no_code(models, tiny_roberta, tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    _made(models, "bare", tmp_path / "peft", pickled=True)
    torch.save({"a": Harm()}, tmp_path / "peft" / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read as tensors alone"):
        _imported(tiny_roberta, tmp_path / "peft")
    assert not (tmp_path / "harm").exists()


def test_weights_that_settings_do_not_name_are_refused(models, tiny_roberta, tmp_path):
    _made(models, "bare", tmp_path / "peft")
    path = tmp_path / "peft" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: t for n, t in tensors.items() if "layer.1.attention.self.query" not in n}, path)
    with pytest.raises(CheckpointError, match=r"name encoder\.layer\.1\.attention\.self\.query, which has no weights"):
        _imported(tiny_roberta, tmp_path / "peft")
    save_file(
        {**tensors, **{n.replace("model.encoder", "model.roberta.encoder"): t.clone() for n, t in tensors.items()}},
        path,
    )
    with pytest.raises(CheckpointError, match="expected one encoder"):
        _imported(tiny_roberta, tmp_path / "peft")
