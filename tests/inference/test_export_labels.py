"""Every kind of label in other programs: an ONNX graph, and models of ``transformers``, answer as the model does."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from tiny import KINDS, make_kinds_system, save_system
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from dynamo_mtl.export.merged import export_merged
from dynamo_mtl.export.onnx import export_onnx
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.model.calibration import AnswerCalibration
from dynamo_mtl.system import load_system

CPU = torch.device("cpu")
TEXT = "the bed was a surprise, and the bill was just right"
TEMPERATURES = {"topics": 1.7, "aspects": 0.6, "names": 2.0, "levels": 1.3}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, session_config):
    """A system with every kind of label, whose answers are calibrated."""
    system = make_kinds_system(session_config.model.model_dump())
    for name, temperature in TEMPERATURES.items():
        system.tasks[name].calibration = AnswerCalibration(
            temperature, [0.3, 0.4, 0.5, 0.6] if name == "aspects" else []
        )
    return save_system(system, tmp_path_factory.mktemp("kinds") / "model")


@pytest.fixture(scope="module")
def answers(saved):
    """The model's own answer of each task."""
    system, _ = load_system(saved, CPU)
    names = [name for name in KINDS if name not in ("quiz", "faq", "sums")]
    made = Predictor(system).predict([TextInput(TEXT)] * len(names), names)
    return {one.task: one.answer for one in made}


def test_calibration_is_part_of_a_checkpoint(saved, answers):
    """Fails if the temperatures are left out of ``dynamo.json``, or not used when it is loaded."""
    system, metadata = load_system(saved, CPU)
    assert {name: metadata.answers[name].temperature for name in TEMPERATURES} == TEMPERATURES
    shares = torch.tensor(list(answers["topics"]["probabilities"].values())).log() * 1.7
    system.tasks["topics"].calibration = AnswerCalibration()
    plain = Predictor(system).predict([TextInput(TEXT)], ["topics"])[0].answer["probabilities"]
    torch.testing.assert_close(torch.softmax(shares, dim=0), torch.tensor(list(plain.values())), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_the_graph_gives_calibrated_logits_and_scores(saved, answers):
    folder = export_onnx(saved, saved.parent / "onnx")
    about = json.loads((folder / "onnx.json").read_text())
    assert "quiz" not in about["outputs"]
    assert about["exported"]["aspects"]["thresholds"] == [0.3, 0.4, 0.5, 0.6]
    system, _ = load_system(saved, CPU)
    ids = np.array([system.source.encode(TEXT).windows[0].ids])
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

    def run(task):
        given = {"ids": ids, "mask": np.ones_like(ids), "task": np.array([list(KINDS).index(task) if task else -1])}
        return dict(zip(about["outputs"], map(torch.tensor, session.run(about["outputs"], given)), strict=True))

    assert run(None)["probabilities"][0, list(KINDS).index("quiz")] == 0
    topics = torch.softmax(run("topics")["topics"][0], dim=0).tolist()
    assert topics == pytest.approx(list(answers["topics"]["probabilities"].values()), abs=1e-4)
    aspects = torch.sigmoid(run("aspects")["aspects"][0]).tolist()
    assert aspects == pytest.approx(list(answers["aspects"]["probabilities"].values()), abs=1e-4)
    assert float(run("marks")["marks"][0, 0].clamp(0, 10)) == pytest.approx(answers["marks"]["value"], abs=1e-3)
    levels = torch.softmax(run("levels")["levels"][0], dim=0).tolist()
    assert levels == pytest.approx(list(answers["levels"]["probabilities"].values()), abs=1e-4)
    assert about["exported"]["levels"]["labels"] == list(answers["levels"]["probabilities"])


@pytest.mark.parametrize(
    ("task", "problem"),
    [("topics", "single_label_classification"), ("aspects", "multi_label_classification"), ("marks", "regression")],
)
def test_a_head_on_the_first_token_is_a_sequence_classifier(saved, answers, task, problem):
    """Probabilities and scores of ``transformers``. Fails without the temperature, the spread, or another layer."""
    folder = export_merged(saved, saved.parent / task, task)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.problem_type == problem
    with torch.no_grad():
        logits = model(**AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")).logits[0]
    if task == "marks":
        assert float(logits[0].clamp(0, 10)) == pytest.approx(answers[task]["value"], abs=1e-3)
        return
    shares = torch.softmax(logits, dim=0) if task == "topics" else torch.sigmoid(logits)
    assert shares.tolist() == pytest.approx(list(answers[task]["probabilities"].values()), abs=1e-4)
    assert list(model.config.id2label.values()) == KINDS[task]["labels"]


def test_tags_are_a_token_classifier_with_calibrated_logits(saved):
    folder = export_merged(saved, saved.parent / "names", "names")
    model = AutoModelForTokenClassification.from_pretrained(folder)
    system, _ = load_system(saved, CPU)
    ids = system.source.encode(TEXT).windows[0].ids
    packed = system.collate([system.tasks["names"].unanswered(system.source.encode(TEXT), 0)])
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits[0]
        weights = system.model.oracle_weights(torch.tensor([system.route_of("names")]))
        hidden = system.model(packed.batch, weights).hidden[: len(ids)]
        expected = system.model.head("names")(hidden) / TEMPERATURES["names"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
