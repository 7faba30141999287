"""What other programs get: an ONNX graph that answers as the model does, and merged checkpoints."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from tiny import save_system, small_system
from transformers import AutoModel, AutoModelForQuestionAnswering, AutoTokenizer

from dynamo_mtl.checkpoint.folder import CONFIG
from dynamo_mtl.cli import main
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.export.merged import export_merged
from dynamo_mtl.export.onnx import export_onnx
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.model.calibration import Calibration
from dynamo_mtl.storage import write_manifest
from dynamo_mtl.strict_yaml import dump_yaml, read_settings
from dynamo_mtl.system import load_system

CPU = torch.device("cpu")
TEXTS = [
    TextInput("Who sang?", "Ada sang in the garden. Tom slept."),
    TextInput("I love this wonderful movie, and so did everybody else who saw it with me on that long evening!"),
    TextInput("no"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, session_config, tables):
    """The small system with adapters, heads and a router that all do something, and its exported graph."""
    system = small_system(session_config, tables)
    with torch.no_grad():
        for parameter in system.model.router.parameters():
            parameter.normal_(std=0.2)
        system.model.router.log_temperature.zero_()
    folder = tmp_path_factory.mktemp("saved")
    calibration = Calibration(temperature=1.7)
    return save_system(system, folder / "model", calibration=calibration)


@pytest.fixture(scope="module")
def graph(saved):
    return export_onnx(saved, saved.parent / "onnx", quantize=True)


def _rows(system, inputs):
    sources = [system.source.encode(i.text, i.context, i.instruction).windows[0].ids for i in inputs]
    longest = max(map(len, sources))
    ids = np.array([ids + [0] * (longest - len(ids)) for ids in sources], dtype=np.int64)
    mask = np.array([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sources], dtype=np.int64)
    return ids, mask


def _run(folder, ids, mask, task, name="model.onnx"):
    session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
    names = json.loads((folder / "onnx.json").read_text())["outputs"]
    found = session.run(names, {"ids": ids, "mask": mask, "task": np.array(task, dtype=np.int64)})
    return dict(zip(names, found, strict=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [1, 3])
def test_the_graph_routes_and_scores_as_the_model_does(saved, graph, count):
    """Any batch and length, to 1e-4. Fails if padding is attended to, or pooled, or an adapter scaled otherwise."""
    system, metadata = load_system(saved, CPU)
    inputs = TEXTS[:count]
    ids, mask = _rows(system, inputs)
    routes = Predictor(system, metadata.calibration).route(inputs)
    found = _run(graph, ids, mask, [-1] * count)
    assert np.abs(found["probabilities"] - np.array([r.probabilities for r in routes])).max() < 1e-4
    assert list(found) == ["probabilities", "sentiment", "qa"]
    told = _run(graph, ids, mask, [1] * count)
    with torch.no_grad():
        for row, one in enumerate(inputs):
            encoded = system.tasks["qa"].unanswered(system.source.encode(one.text, one.context, None), 0)
            packed = system.collate([encoded])
            hidden = system.model(packed.batch, system.model.oracle_weights(torch.tensor([1]))).hidden[
                : mask[row].sum()
            ]
            expected = system.model.head("qa")(hidden)
            assert np.abs(told["qa"][row, : mask[row].sum()] - expected.numpy()).max() < 1e-4
    answer = Predictor(system).predict(inputs[-1:], ["sentiment"])[0].answer
    scores = torch.softmax(torch.tensor(_run(graph, ids, mask, [0] * count)["sentiment"][-1]), dim=0)
    assert float(scores.max()) == pytest.approx(answer["score"], abs=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_the_router_chooses_where_no_task_is_given(saved, graph):
    ids, mask = _rows(load_system(saved, CPU)[0], TEXTS)
    free = _run(graph, ids, mask, [-1] * 3)
    chosen = free["probabilities"].argmax(axis=1)
    told = _run(graph, ids, mask, chosen)
    assert all(np.allclose(free[name], told[name], atol=1e-5) for name in free)


@pytest.mark.filterwarnings("ignore")
def test_eight_bits_are_close(saved, graph):
    ids, mask = _rows(load_system(saved, CPU)[0], TEXTS)
    exact, small = (_run(graph, ids, mask, [0, 1, 0], name) for name in ("model.onnx", "model.int8.onnx"))
    assert np.abs(exact["probabilities"] - small["probabilities"]).max() < 0.15
    assert np.abs(exact["probabilities"] - small["probabilities"]).max() > 0
    assert (graph / "model.int8.onnx").stat().st_size < (graph / "model.onnx").stat().st_size


def test_a_merged_checkpoint_is_the_model_told_the_task(saved, tmp_path):
    system, _ = load_system(saved, CPU)
    folder = export_merged(saved, tmp_path / "qa", "qa")
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    assert AutoTokenizer.from_pretrained(folder)("a")["input_ids"]
    ids, mask = _rows(system, TEXTS[:1])
    encoded = system.tasks["qa"].unanswered(system.source.encode(TEXTS[0].text, TEXTS[0].context, None), 0)
    with torch.no_grad():
        packed = system.collate([encoded])
        hidden = system.model(packed.batch, system.model.oracle_weights(torch.tensor([1]))).hidden[: ids.shape[1]]
        expected = system.model.head("qa")(hidden)
        found = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
    assert torch.allclose(found.start_logits[0], expected[:, 0], atol=1e-4)
    assert torch.allclose(found.end_logits[0], expected[:, 1], atol=1e-4)


def test_other_tasks_are_the_encoder_with_the_head_beside_it(saved, tmp_path):
    folder = export_merged(saved, tmp_path / "translation", "translation")
    assert AutoModel.from_pretrained(folder, add_pooling_layer=False).config.num_hidden_layers == 4
    head = load_file(folder / "head.safetensors")
    assert head.keys() == load_file(saved / "heads" / "translation.safetensors").keys()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--format", "gguf"], "found 'gguf', use onnx or merged"),
        (["--format", "merged"], "merged needs the task"),
        (["--format", "onnx", "--task", "qa"], "onnx holds all of them"),
        (["--format", "merged", "--task", "q"], "no task 'q'; did you mean 'qa'?"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(saved, options, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", str(saved), str(tmp_path / "out"), *options])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not Path(tmp_path / "out").exists()


def test_a_model_that_only_writes_is_not_exported(saved, tmp_path, monkeypatch):
    from dynamo_mtl.export import onnx as onnx_export

    real = onnx_export.load_system

    def only_writers(*arguments):
        system, metadata = real(*arguments)
        for name in ("sentiment", "qa"):
            system.tasks[name] = system.tasks["translation"]
        return system, metadata

    monkeypatch.setattr(onnx_export, "load_system", only_writers)
    with pytest.raises(ConfigError, match="every task of this model writes text"):
        export_onnx(saved, tmp_path / "onnx")


@pytest.mark.filterwarnings("ignore")
def test_a_graph_has_the_weights_as_they_were_published(saved, graph, tmp_path):
    """Where a model is computed in bf16, the graph is not: fails if rounded weights are exported."""
    settings = read_settings(saved / CONFIG)
    settings["model"]["precision"] = "bf16"
    rounded = tmp_path / "model"
    shutil.copytree(saved, rounded)
    (rounded / CONFIG).write_text(dump_yaml(settings))
    write_manifest(rounded)
    sessions = [
        onnxruntime.InferenceSession(folder / "model.onnx")
        for folder in (graph, export_onnx(rounded, tmp_path / "onnx"))
    ]
    ids = np.array([[0, 17, 33, 51, 2]])
    fed = {"ids": ids, "mask": np.ones_like(ids), "task": np.array([-1])}
    for ours, other in zip(*(session.run(None, fed) for session in sessions), strict=True):
        assert np.array_equal(ours, other)


@pytest.mark.filterwarnings("ignore")
def test_the_graph_of_a_router_that_learned_more_routes_as_the_model_does(saved, tmp_path):
    """A branch that widens a task, at a temperature so low that exponentials of logits would overflow."""
    system, metadata = load_system(saved, CPU)
    torch.manual_seed(4)
    router = system.model.router = system.model.router.with_branch(4, 1)
    with torch.no_grad():
        router.log_temperature.fill_(-2.9)
        for parameter in router.branches[-1].parameters():
            parameter.normal_(std=0.5)
    system.config = system.config.model_copy(update={"router": router.config})
    folder = save_system(system, tmp_path / "model", calibration=metadata.calibration)
    graph = export_onnx(folder, tmp_path / "onnx")
    system, metadata = load_system(folder, CPU)
    ids, mask = _rows(system, TEXTS)
    routes = Predictor(system, metadata.calibration).route(TEXTS)
    found = _run(graph, ids, mask, [-1] * len(TEXTS))
    assert np.abs(found["probabilities"] - np.array([r.probabilities for r in routes])).max() < 1e-4
