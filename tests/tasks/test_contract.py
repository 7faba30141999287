"""Every task type that is found keeps the contract, also one that another package brings."""

import dataclasses
import re
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from dynamo_mtl.data.samples import sample_rows
from dynamo_mtl.data.samples.classification import TOPICS
from dynamo_mtl.data.samples.multi_label import ASPECTS
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.tasks import registry as contract
from dynamo_mtl.tasks.classification import Classification
from dynamo_mtl.tasks.generation_task import GenerationTask
from dynamo_mtl.tasks.instruction_templates import InstructionTemplates
from dynamo_mtl.tasks.registry import task_types
from dynamo_mtl.testing import check_task_type

SETTINGS = {
    "classification": {"labels": list(TOPICS)},
    "multi_label": {"labels": list(ASPECTS)},
    "regression": {"score_range": [0, 10]},
    "token_classification": {"kinds": ["PER", "ORG", "LOC"]},
}


def _rows(kind):
    return [row for _, row in zip(range(6), sample_rows(kind, "train"), strict=False)]


def _settings(kind):
    own = {"target_vocabulary": 300, "generation": {"max_new_tokens": 6}}
    writes = issubclass(task_types()[kind], GenerationTask)
    return {**SETTINGS.get(kind, {}), **(own if writes else {})}


@pytest.mark.parametrize("kind", sorted(task_types()))
def test_every_type_keeps_the_contract(kind, tiny_roberta):
    check_task_type(task_types()[kind], _rows(kind), str(tiny_roberta), _settings(kind))


def test_ordinal_scores_and_soft_labels_keep_the_contract(tiny_roberta):
    ordinal = {"score_range": [0, 10], "ordinal": True}
    check_task_type(task_types()["regression"], _rows("regression"), str(tiny_roberta), ordinal)
    rows = [{"text": f"it is {n}", "probabilities": [n / 8, 1 - n / 8]} for n in range(6)]
    soft = {"labels": ["yes", "no"], "soft_labels": True}
    check_task_type(Classification, rows, str(tiny_roberta), soft)


class Shouting(Classification):
    """Of another package: whether a text is loud."""

    type = "shouting"
    instruction_templates = InstructionTemplates(training=("Is this loud?",))


@pytest.fixture
def other_package(monkeypatch):
    """An installed package that brings a type."""
    point = EntryPoint("shouting", f"{__name__}:Shouting", contract.ENTRY_POINTS)
    found = {contract.ENTRY_POINTS: (point,)}
    monkeypatch.setattr(contract, "entry_points", lambda group: found.get(group, ()))
    task_types.cache_clear()
    yield
    task_types.cache_clear()


def test_a_type_of_another_package_is_found(other_package, tiny_roberta):
    assert task_types()["shouting"] is Shouting
    rows = [{"text": text, "label": label} for text, label in (("HEY", 1), ("hush", 0), ("NOW", 1), ("so", 0))]
    check_task_type(Shouting, rows, str(tiny_roberta), {"labels": ["quiet", "loud"]})


def test_the_type_on_the_page_is_complete(monkeypatch, tiny_roberta):
    """Fails if the class in docs/adding_a_task.md no longer keeps the contract."""
    page = (Path(__file__).parents[2] / "docs" / "adding_a_task.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(from dataclasses.*?)```", page, flags=re.DOTALL)
    module = types.ModuleType("yes_no")
    exec(compile(block[1], "adding_a_task.md", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "yes_no", module)
    point = EntryPoint("yes_no", "yes_no:YesNo", contract.ENTRY_POINTS)
    monkeypatch.setattr(contract, "entry_points", lambda group: (point,) if group == contract.ENTRY_POINTS else ())
    task_types.cache_clear()
    rows = [
        {"question": "does she sing", "passage": "Ada sings in the garden.", "label": "yes"},
        {"question": "is it cold", "passage": "It is the hottest day of the year.", "answer": 0},
        {"question": "did they win", "passage": "They lost every match.", "label": "no"},
        {"question": "is the shop open", "context": "The shop opens at nine and it is ten.", "label": "1"},
    ]
    try:
        check_task_type(module.YesNo, rows, str(tiny_roberta))
    finally:
        task_types.cache_clear()


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ({"score": lambda *_: {"accuracy": 1.0}}, "answers of another type should score 0"),
        ({"main_metric": "kappa"}, "main metric 'kappa'"),
        ({"losses": lambda self, head, hidden, view: hidden.sum()[None]}, "one for each label"),
        ({"losses": lambda self, head, hidden, view: hidden[view.tokens[:, 0], 0]}, "the head no gradient"),
        ({"losses": lambda self, head, hidden, view: hidden[view.tokens[:, 0], 0] * len(view.examples)}, "add up"),
        ({"trivial_answers": lambda self, train, rows: [{"class": 0}] * len(rows)}, "keys of the model's"),
        (
            {"instruction_templates": InstructionTemplates(training=("a",), validation=("b",), evaluation=("a",))},
            "two sets",
        ),
    ],
)
def test_a_type_that_breaks_the_contract_is_told_so(broken, sentence, other_package, monkeypatch, tiny_roberta):
    """Each is a planted fault. Fails if the suite passes whatever it is given."""
    for name, value in broken.items():
        monkeypatch.setattr(Shouting, name, value)
    rows = [{"text": text, "label": label} for text, label in (("HEY", 1), ("hush", 0), ("NOW", 1), ("so", 0))]
    with pytest.raises(AssertionError, match=sentence):
        check_task_type(Shouting, rows, str(tiny_roberta), {"labels": ["quiet", "loud"]})


def test_two_packages_cannot_bring_the_same_type(monkeypatch):
    @dataclasses.dataclass
    class Point:
        name: str = "other"

        def load(self):
            return type("Other", (Shouting,), {"type": "sentiment"})

    monkeypatch.setattr(contract, "entry_points", lambda group: (Point(),))
    task_types.cache_clear()
    with pytest.raises(ConfigError, match="'other' brings the task type 'sentiment', which there is already"):
        task_types()
    task_types.cache_clear()
