"""The routing analyzer against decisions that are known."""

import json
import re

import numpy as np
import pytest
import torch

from dynamo_mtl.errors import DataError
from dynamo_mtl.evaluation.analysis import adapter_similarity
from dynamo_mtl.evaluation.analyzer import create_routing_analyzer
from dynamo_mtl.evaluation.html_page import write_report
from dynamo_mtl.figures import INK
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.model.encoder import SITES


def _batch(system, texts):
    ids = [torch.tensor(system.source.encode(text).windows[0].ids) for text in texts]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    mask = torch.arange(padded.shape[1])[None, :] < torch.tensor([len(i) for i in ids])[:, None]
    return {"input_ids": padded, "attention_mask": mask.long()}


def test_the_analysis_is_that_of_the_predictor(system):
    texts = ["A short one.", "A text that is quite a bit longer than the other one.", "Write a function."]
    names = list(system.tasks)
    expected = torch.tensor([route.probabilities for route in Predictor(system).route([TextInput(t) for t in texts])])
    chosen = expected.argmax(dim=1).tolist()
    analyzer = create_routing_analyzer(system.model, names)
    wrong = (chosen[2] + 1) % len(names)
    batch = _batch(system, texts)
    analysis = analyzer.analyze_routing_decisions([{**batch, "task_ids": torch.tensor([*chosen[:2], wrong])}])
    assert analysis["accuracy"] == pytest.approx(2 / 3)
    assert sum(map(sum, analysis["confusion"])) == 3
    assert analysis["confusion"][wrong][chosen[2]] == 1
    torch.testing.assert_close(torch.tensor(analysis["probabilities"][names[wrong]]), expected[2], atol=1e-5, rtol=0)
    by_name = analyzer.analyze_routing_decisions([{**batch, "task": [names[i] for i in (*chosen[:2], wrong)]}])
    assert by_name == analysis


def test_misuse_of_the_analyzer_is_said(system, tmp_path):
    names = list(system.tasks)
    analyzer = create_routing_analyzer(system.model, names)
    with pytest.raises(DataError, match="call analyze_routing_decisions first"):
        analyzer.visualize_routing_patterns(tmp_path)
    with pytest.raises(DataError, match="is empty"):
        analyzer.analyze_routing_decisions([])
    with pytest.raises(DataError, match="needs 'task' or 'task_ids', found input_ids, attention_mask"):
        analyzer.analyze_routing_decisions([_batch(system, ["x"])])
    with pytest.raises(DataError, match="task_names"):
        create_routing_analyzer(system.model, names[::-1])


def test_what_the_analysis_says_of_known_inputs(system):
    """Windows are joined, kinds are told apart, wordings counted, and the hardest input stands first."""
    names = list(system.tasks)
    texts = ["A short one.", "Say it in German: A short one.", "def f(x): return x + 1", "An a the of it."]
    batch = _batch(system, texts)
    rows = {
        "example_ids": [0, 0, 1, 2],
        "text": ["first", "first", "second", "third"],
        "instruction": ["Do:", "Do:", None, "Do:"],
        "kind": ["crossed", "crossed", "bare", "crossed"],
    }
    analyzer = create_routing_analyzer(system.model, names)
    found = analyzer.analyze_routing_decisions([{**batch, **rows, "task": [names[0], names[0], names[1], names[2]]}])
    assert found["n"] == 3
    assert {kind: scores["n"] for kind, scores in found["kinds"].items()} == {"crossed": 2, "bare": 1}
    assert [(row["instruction"], row["n"]) for row in found["wordings"]] == [("Do:", 2)]
    own = [row["own_probability"] for row in found["hardest"]]
    assert own == sorted(own)
    assert {row["text"] for row in found["hardest"]} == {"first", "second", "third"}
    assert sum(row["weight"] for row in found["usage"].values()) == pytest.approx(1, abs=1e-5)
    assert [found["usage"][name]["inputs"] for name in names[:3]] == [pytest.approx(1 / 3)] * 3
    instructed = found["correlations"]["has an instruction"]
    confidence = np.array([row["confidence"] for row in sorted(found["hardest"], key=lambda row: row["text"])])
    assert instructed["confidence"] == pytest.approx(np.corrcoef([1, 0, 1], confidence)[0, 1], abs=1e-4)
    json.dumps(found)


def test_adapter_similarity_is_the_cosine_of_the_weight_changes(system):
    """Fails if a site that only one of two adapters has is counted for both."""
    model = system.model
    found = adapter_similarity(model)

    def change(name):
        parts = []
        for layer in range(model.tap_layer, 4):
            for site in SITES:
                pair, other = (model.bank[n].pair(layer, site) for n in (name, "translation"))
                size = other[1].shape[0] * other[0].shape[1]
                parts.append((pair[1] @ pair[0]).flatten() if pair else torch.zeros(size))
        return torch.cat(parts).detach()

    names = model.task_names
    for i, j in ((0, 1), (1, 3), (2, 4), (3, 3)):
        expected = torch.nn.functional.cosine_similarity(change(names[i]), change(names[j]), dim=0)
        assert found[i][j] == pytest.approx(float(expected), abs=1e-4)


def test_every_picture_is_drawn_and_takes_the_colour_of_the_page(system, tmp_path):
    names = list(system.tasks)
    analyzer = create_routing_analyzer(system.model, names)
    texts = ["A short one.", "Another <b>text</b> & more.", "Third.", "A fourth and a longer one."]
    analyzer.analyze_routing_decisions([{**_batch(system, texts), "task": names[:4]}])
    paths = analyzer.visualize_routing_patterns(tmp_path / "new")
    assert {path.stem for path in paths} == {
        "routing_confusion",
        "usage",
        "reliability",
        "risk_coverage",
        "feature_map",
        "adapter_similarity",
        "correlations",
    }
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in paths)
    for picture in analyzer.pictures():
        text = picture.svg()
        assert "currentColor" in text
        assert INK not in text
        assert "http:" not in text.replace("http://www.w3.org/", "")
        assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(re.findall(r'id="([^"]*)"', text))


def test_a_page_escapes_what_models_and_data_say(system, tmp_path):
    names = list(system.tasks)
    analyzer = create_routing_analyzer(system.model, names)
    bad = '<script>alert(1)</script> & "quoted" </table>'
    batch = {**_batch(system, ["x", "y"]), "task": names[:2], "text": [bad, bad], "instruction": [bad, None]}
    analysis = analyzer.analyze_routing_decisions([batch])
    page = write_report(tmp_path, None, {**analysis, "warnings": [bad]}).read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4
