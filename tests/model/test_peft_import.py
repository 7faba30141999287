"""Adapters that PEFT trained: the same hidden states here, or a sentence about what does not fit."""

import json

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import save_system
from transformers import RobertaModel

from dynamo_mtl.cli import main
from dynamo_mtl.errors import CheckpointError, ConfigError
from dynamo_mtl.lifecycle.editing import import_for, replace_adapter
from dynamo_mtl.model.batch import Window, build_batch
from dynamo_mtl.system import load_system

CPU = torch.device("cpu")
IDS = torch.tensor([[0, 45, 67, 89, 101, 45, 2]])
LAYERS = [1, 2, 3]


@pytest.fixture
def checkpoint(system, session_config, tmp_path):
    return save_system(system, tmp_path / "model")


def _saved(tiny_roberta, folder, dtype=torch.float32, **settings):
    """A PEFT folder whose adapter is no no-op, and the model with it."""
    torch.manual_seed(5)
    base = RobertaModel.from_pretrained(tiny_roberta, add_pooling_layer=False)
    chosen = {"layers_to_transform": LAYERS, "layers_pattern": "layer", "r": 4, "lora_alpha": 6, **settings}
    model = get_peft_model(base, PeftConfig(**chosen))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
                parameter.copy_(parameter.to(dtype))
    model.save_pretrained(folder)
    if dtype != torch.float32:
        path = folder / "adapter_model.safetensors"
        save_file({n: t.to(dtype) for n, t in load_file(path).items()}, path, metadata={"format": "pt"})
    return model.eval()


def _hidden(folder, task):
    """Hidden states of a checkpoint's model with one adapter."""
    system = load_system(folder, CPU)[0]
    model = system.model.eval()
    batch = build_batch([Window(IDS[0].tolist(), 0)], [], system.first_position)
    with torch.no_grad():
        weights = model.oracle_weights(torch.tensor([system.route_of(task)]))
        return model(batch, weights).hidden[: IDS.shape[1]]


CASES = {
    "query and value": {"target_modules": ["query", "value"]},
    "rank-stabilised": {"target_modules": ["query", "intermediate.dense"], "use_rslora": True},
    "ranks of their own": {
        "target_modules": ["query", "key", "attention.output.dense", "intermediate.dense"],
        "rank_pattern": {"key": 7, r"layer\.2\.attention\.self\.query": 2},
        "alpha_pattern": {"key": 3, "intermediate.dense": 11},
    },
    "half precision": {"target_modules": ["query", "value"], "dtype": torch.float16},
}


@pytest.mark.parametrize("case", CASES)
def test_an_imported_adapter_gives_the_same_hidden_states(case, tiny_roberta, checkpoint, tmp_path):
    """Fails if a rank, an alpha or the rank-stabilised scale of one module is taken for that of all."""
    settings = dict(CASES[case])
    model = _saved(tiny_roberta, tmp_path / "peft", **settings)
    replace_adapter(checkpoint, tmp_path / "imported", "translation", tmp_path / "peft")
    with torch.no_grad():
        expected = model(input_ids=IDS).last_hidden_state[0]
    found = _hidden(tmp_path / "imported", "translation")
    assert (found - expected).abs().max() < 1e-5
    # And it goes out again: what was imported opens with PEFT.
    base = RobertaModel.from_pretrained(tiny_roberta, add_pooling_layer=False)
    again = PeftModel.from_pretrained(base, tmp_path / "imported" / "adapters" / "translation").eval()
    with torch.no_grad():
        assert (again(input_ids=IDS).last_hidden_state[0] - expected).abs().max() < 1e-5


def test_an_adapter_of_a_whole_classifier_is_taken_over_another_backbone_with_a_warning(
    tiny_roberta, checkpoint, tmp_path, caplog
):
    """Its keys have the encoder's name in front: ``base_model.model.roberta.encoder…``."""
    _saved(tiny_roberta, tmp_path / "peft", target_modules=["query", "value"])
    path, settings = tmp_path / "peft" / "adapter_model.safetensors", tmp_path / "peft" / "adapter_config.json"
    renamed = {n.replace("model.encoder", "model.roberta.encoder"): t for n, t in load_file(path).items()}
    save_file(renamed, path, metadata={"format": "pt"})
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "base_model_name_or_path": "x/other-base"}))
    replace_adapter(checkpoint, tmp_path / "imported", "translation", tmp_path / "peft")
    assert "was trained over x/other-base, this model's backbone is" in caplog.text
    _saved(tiny_roberta, tmp_path / "plain", target_modules=["query", "value"])
    replace_adapter(checkpoint, tmp_path / "same", "translation", tmp_path / "plain")
    assert torch.equal(_hidden(tmp_path / "imported", "translation"), _hidden(tmp_path / "same", "translation"))


def test_the_head_and_all_other_tasks_stay(tiny_roberta, checkpoint, tmp_path):
    _saved(tiny_roberta, tmp_path / "peft", target_modules=["query"])
    folder = replace_adapter(checkpoint, tmp_path / "imported", "qa", tmp_path / "peft")
    for path in checkpoint.rglob("*.safetensors"):
        name = path.relative_to(checkpoint)
        assert ((folder / name).read_bytes() == path.read_bytes()) is (name.parts[:2] != ("adapters", "qa")), name


@pytest.mark.parametrize(
    ("settings", "change", "sentence"),
    [
        ({"layers_to_transform": [0, 1]}, {}, r"layer 0; adapters sit in the layers 1 to 3 here \(model.tap_layer\)"),
        ({"use_dora": True}, {}, "use_dora is True, which a plain LoRA does not have"),
        ({}, {"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the backbone too"),
        ({"bias": "lora_only"}, {}, "bias is 'lora_only'"),
        ({}, {"peft_type": "IA3"}, "peft_type 'IA3', only LORA can be imported"),
        ({}, {"lora_alpha": "many"}, "lora_alpha and lora_dropout should be numbers"),
        ({}, {"lora_alpha": -1}, "alpha: input should be greater than 0"),
        ({}, {"alpha_pattern": {"query": "many"}}, "alpha_pattern should hold patterns and numbers"),
        ({}, {"alpha_pattern": {"[[:alpha:]]": 8}}, "is no plain pattern of a module's path"),
        ({}, {"modules_to_save": ["classifier"]}, "heads are trained here; --no-strict leaves it out"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(settings, change, sentence, tiny_roberta, checkpoint, tmp_path):
    _saved(tiny_roberta, tmp_path / "peft", **{"target_modules": ["query", "value"], **settings})
    path = tmp_path / "peft" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises((CheckpointError, ConfigError), match=sentence):
        import_for(checkpoint, tmp_path / "peft")


def test_an_adapter_of_another_width_is_refused(tiny_roberta, checkpoint, tmp_path):
    _saved(tiny_roberta, tmp_path / "peft", target_modules=["query"])
    path = tmp_path / "peft" / "adapter_model.safetensors"
    tensors = {n: t[:, :5].contiguous() if "lora_A" in n else t for n, t in load_file(path).items()}
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"expected A \(rank, 32\) and B \(32, rank\) for this backbone, found"):
        import_for(checkpoint, tmp_path / "peft")


def test_without_strict_the_rest_is_taken_with_a_warning(tiny_roberta, checkpoint, tmp_path, caplog):
    _saved(tiny_roberta, tmp_path / "peft", target_modules=["query"], layers_to_transform=[0, 1])
    adapter = import_for(checkpoint, tmp_path / "peft", strict=False)
    assert "left out" in caplog.text
    assert adapter.up["1_query"].abs().sum() > 0
    assert adapter.up["2_query"].abs().sum() == 0


def test_the_command_imports_and_refuses(tiny_roberta, checkpoint, tmp_path, capsys):
    _saved(tiny_roberta, tmp_path / "peft", target_modules=["query"])
    with pytest.raises(SystemExit) as stop:
        main(["import-adapter", str(checkpoint), str(tmp_path / "peft"), "--task", "qa"])
    assert stop.value.code == 0
    assert (tmp_path / "model-imported" / "dynamo.json").is_file()
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "import-adapter",
                str(checkpoint),
                str(tmp_path / "nothing"),
                "--task",
                "qa",
                "--output",
                str(tmp_path / "o"),
            ]
        )
    assert stop.value.code == 2
    assert "adapter_config.json: cannot be read" in capsys.readouterr().err
