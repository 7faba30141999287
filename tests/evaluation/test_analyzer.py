"""The routing analyzer against decisions that are known."""

import pytest
import torch

from dynamo_mtl.errors import DataError
from dynamo_mtl.evaluation.analyzer import create_routing_analyzer
from dynamo_mtl.inference.predictor import Predictor, TextInput


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
