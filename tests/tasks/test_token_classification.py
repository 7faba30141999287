"""Named entities: reading, tagging tokens, spelling entities, scoring."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dynamo_mtl.config.system_config import SystemConfig
from dynamo_mtl.config.validation import validate
from dynamo_mtl.errors import DataError
from dynamo_mtl.metrics.entities import entity_interval, entity_scores
from dynamo_mtl.model.backbone import load_tokenizer
from dynamo_mtl.model.heads import TokenHead
from dynamo_mtl.system import build_system
from dynamo_mtl.tasks.encoding import SourceEncoder, collate
from dynamo_mtl.tasks.registry import task_types
from dynamo_mtl.tasks.task import Example
from dynamo_mtl.training.step import example_losses, make_step_batch, task_backward

KINDS = ["PER", "ORG", "LOC"]
TEXT = "Ada Abel of Kestrel Bank visited Halvik ."
ENTITIES = [[0, 8, "PER"], [12, 24, "ORG"], [33, 39, "LOC"]]


@pytest.fixture
def task():
    kind = task_types()["token_classification"]
    return kind("ner", kind.Config(type="token_classification", kinds=KINDS))


@pytest.fixture(scope="module")
def encoder(tiny_roberta):
    return SourceEncoder(load_tokenizer(tiny_roberta), 24, 8, 4)


def test_rows_have_spans_or_tagged_words(task):
    spans = [{"start": s, "end": e, "label": k} for s, e, k in ENTITIES]
    by_spans = task.read({"text": TEXT, "entities": spans}, "row 1")
    in_a_cell = task.read({"text": TEXT, "entities": json.dumps(spans)}, "row 1")
    names = ["B-PER", "I-PER", "O", "B-ORG", "I-ORG", "O", "B-LOC", "O"]
    by_names = task.read({"tokens": TEXT.split(), "ner_tags": names}, "row 1")
    by_numbers = task.read({"tokens": TEXT.split(), "ner_tags": [1, 2, 0, 3, 4, 0, 5, 0]}, "row 1")
    assert by_spans == in_a_cell == by_names == by_numbers
    assert json.loads(by_spans.target) == ENTITIES


def test_a_kind_that_begins_anew_is_another_entity(task):
    row = {"tokens": ["Ada", "Ben", "Bank", "Press"], "ner_tags": ["B-PER", "B-PER", "I-ORG", "I-ORG"]}
    assert json.loads(task.read(row, "row 1").target) == [[0, 3, "PER"], [4, 7, "PER"], [8, 18, "ORG"]]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"text": TEXT, "entities": "none"}, "list of start, end and label"),
        ({"text": TEXT, "entities": [{"start": 0, "end": 99, "label": "PER"}]}, "not in its text"),
        ({"text": TEXT, "entities": [{"start": 0, "end": 3, "label": "DOG"}]}, "of no kind of PER, ORG, LOC"),
        ({"tokens": ["Ada"], "ner_tags": ["B-DOG"]}, "tag 'B-DOG'"),
        ({"tokens": ["Ada", "Abel"], "ner_tags": [1]}, "a tag for every word"),
        ({"text": " ", "entities": []}, "is empty"),
    ],
)
def test_a_bad_row_is_one_sentence(task, row, sentence):
    with pytest.raises(DataError, match=sentence) as error:
        task.read(row, "train.jsonl, line 3")
    assert "train.jsonl, line 3" in str(error.value)


def _classes(task, encoder, instruction=None):
    source = encoder.encode(TEXT, None, instruction)
    entities = [{"start": s, "end": e, "label": k} for s, e, k in ENTITIES]
    example = task.read({"text": TEXT, "entities": entities}, "")
    return source, task.encode(example, source, 0)


@pytest.mark.parametrize("instruction", [None, "Find the names of Ada:"])
def test_what_the_labels_say_is_spelled_back(task, encoder, instruction):
    """Over several windows, and with an instruction in front, whose words name nothing in the text.

    Fails if offsets are those of the window, or of the text with its instruction.
    """
    source, encoded = _classes(task, encoder, instruction)
    assert len(source.windows) > 1
    packed = collate([encoded], 0)
    (view,) = packed.views
    head = TokenHead(task.head_config().labels, task.head_config().labels)
    with torch.no_grad():
        head.out.weight.copy_(torch.eye(7))
        head.out.bias.zero_()
    hidden = torch.zeros(int(view.tokens.max()) + 1, 7)
    for number, window, token in zip(*(encoded.labels[n] for n in ("class", "window", "token")), strict=True):
        hidden[view.tokens[window, token], number] = 9.0
    (answer,) = task.answers(head, hidden, view, [source])
    assert [[e["start"], e["end"], e["entity_group"]] for e in answer["entities"]] == ENTITIES
    assert [e["word"] for e in answer["entities"]] == ["Ada Abel", "Kestrel Bank", "Halvik"]
    losses = task.losses(head, hidden, view)
    assert losses.shape == (len(encoded.labels["class"]),)
    assert losses.max() < 0.01


@pytest.mark.parametrize("surer", [0, 1])
def test_where_windows_disagree_the_surer_one_says(task, encoder, surer):
    """A token of two windows, of one class in each: fails if the first or the last window always wins."""
    source, encoded = _classes(task, encoder)
    packed = collate([encoded], 0)
    (view,) = packed.views
    places = [(w, window.body_start + n, offsets) for w, window in enumerate(source.windows[:2])
              for n, offsets in enumerate(window.offsets)]  # fmt: skip
    shared = next(o for w, _, o in places if w and o in {p[2] for p in places if not p[0]})
    hidden = torch.zeros(int(view.tokens.max()) + 1, 7)
    hidden[:, 0] = 5.0
    for window, token, offsets in places:
        if offsets == shared:
            hidden[view.tokens[window, token]] = 0.0
            hidden[view.tokens[window, token], (1, 3)[window]] = 9.0 if window == surer else 3.0
    head = TokenHead(7, 7)
    with torch.no_grad():
        head.out.weight.copy_(torch.eye(7))
        head.out.bias.zero_()
    (answer,) = task.answers(head, hidden, view, [source])
    assert [e["entity_group"] for e in answer["entities"]] == [KINDS[surer]]


def test_an_entity_counts_if_characters_and_kind_are_right():
    """3 found, 4 expected, 2 right: precision 2/3, recall 1/2, F1 4/7."""
    predictions = [[(0, 3, "PER"), (5, 8, "LOC")], [(0, 4, "ORG")]]
    references = [[(0, 3, "PER"), (5, 8, "ORG")], [(0, 4, "ORG"), (6, 9, "PER")]]
    expected = {"precision": 200 / 3, "recall": 50.0, "f1": 400 / 7}
    assert entity_scores(predictions, references) == pytest.approx(expected)
    assert entity_scores([[]], [[]]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_the_interval_is_of_f1_over_all_entities():
    """Half of the texts have one entity, which is found: F1 is 100 in all resamples. A mean over texts would be 50."""
    predictions = [[(0, 3, "PER")], []] * 20
    assert entity_interval(predictions, predictions) == (100.0, 100.0)
    found = [[(0, 3, "PER")], [(0, 4, "ORG")]] * 20
    low, high = entity_interval(found, predictions)  # 20 right of 40 found and 20 expected
    assert entity_scores(found, predictions)["f1"] == pytest.approx(200 / 3)
    assert low < 200 / 3 < high


def test_a_text_without_tokens_has_no_loss(session_config):
    """A blank that is no blank to Python: before, 0 / 0 made every validation worse than none."""
    settings = {"type": "ner", "kinds": ["PER"]}
    data = {"paths": {"names": "unused"}, "max_source_length": 64, "window_overlap": 16}
    config = {"data": data, "tasks": {"names": settings}, "model": session_config.model.model_dump()}
    rows = [Example(text, None, "[]") for text in ("\u200b", "Ada sang")]
    built = build_system(validate(SystemConfig, config, "test"), lambda _: rows, torch.device("cpu"))
    encoded = [built.encode(row, "names") for row in rows]
    encoded[0] = replace(encoded[0], labels={name: [] for name in encoded[0].labels})
    losses = example_losses(built, encoded, 1000)
    assert losses[0] == 0.0
    assert losses[1] > 0
    batch = make_step_batch(encoded[:1], [], 1000, built.collate)
    assert float(task_backward(built, batch, 0, lambda loss: loss)["loss"]) == 0.0


def test_names_of_the_training_data_are_found_wherever_they_stand(task):
    rows = [SimpleNamespace(text=TEXT, target=json.dumps(ENTITIES))]
    asked = [SimpleNamespace(text="Halvik and Halvika, said Ada Abel", target="[]")]
    (answer,) = task.trivial_answers(rows, asked)
    assert [(e["word"], e["start"]) for e in answer["entities"]] == [("Halvik", 0), ("Ada Abel", 25)]
