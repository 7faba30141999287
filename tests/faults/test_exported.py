"""What is exported carries what is set at run time: the recipe of docs/export.md gives the model's ids and answers."""

import json
import re
from pathlib import Path

import pytest
import torch
from tiny import save_system
from transformers import AutoTokenizer

from dynamo_mtl.config import load_config
from dynamo_mtl.export.merged import export_merged
from dynamo_mtl.export.onnx import export_onnx
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.system import build_system

PAGE = Path(__file__).parent.parent.parent / "docs" / "export.md"
TEXTS = ["I love this movie!", "a [SEP] b [CLS] and [PAD], read as they stand", "short"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained model over MiniLM, whose published tokenizer pads and cuts at 128 tokens."""
    place = tmp_path_factory.mktemp("minilm")
    settings = {
        "data": {"sentiment_data_path": "sample", "qa_data_path": "sample"},
        "model": {"base_model_name": "minilm", "precision": "fp32"},
        "router": {"hidden_sizes": [16]},
    }
    (place / "config.yaml").write_text(dump_yaml(settings))
    torch.manual_seed(0)
    system = build_system(load_config(place / "config.yaml"), lambda task: [], torch.device("cpu"))
    with torch.no_grad():
        for parameter in system.model.bank.parameters():
            parameter.normal_(std=0.05)
    return save_system(system, place / "model", tap_layer=system.model.tap_layer)


@pytest.fixture(scope="module")
def recipe():
    """The page's program."""
    block = re.search(r"```python\n(import json.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert block
    return block[1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", TEXTS)
def test_the_recipe_gives_the_models_ids_and_answers(folder, recipe, text, tmp_path_factory):
    """Fails if the exported tokenizer pads, cuts, or reads a text's ``[SEP]`` as structure."""
    graph = tmp_path_factory.getbasetemp() / "minilm-onnx"
    if not graph.exists():
        export_onnx(folder, graph)
    told = {}
    exec(recipe.replace('"runs/onnx/', f'"{graph}/').replace('"I love this movie!"', repr(text)), told)
    model = DynamoInference(folder, device="cpu")
    assert told["ids"] == model.system.source.encode(text).windows[0].ids
    routed = model.route(text)["probabilities"]
    assert told["found"][0][0].tolist() == pytest.approx(list(routed.values()), abs=1e-4)
    assert told["about"]["tasks"][told["found"][0][0].argmax()] == max(routed, key=routed.get)


@pytest.mark.parametrize("text", TEXTS)
def test_a_merged_checkpoints_tokenizer_gives_the_same_ids(folder, text, tmp_path_factory):
    merged = tmp_path_factory.getbasetemp() / "minilm-merged"
    if not merged.exists():
        export_merged(folder, merged, "qa")
    source = DynamoInference(folder, device="cpu").system.source
    for place in (folder, merged):
        settings = json.loads((place / "tokenizer.json").read_text(encoding="utf-8"))
        assert (settings["truncation"], settings["padding"]) == (None, None)
        assert AutoTokenizer.from_pretrained(place)(text)["input_ids"] == source.encode(text).windows[0].ids
