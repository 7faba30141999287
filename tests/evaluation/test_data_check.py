"""``dynamo data check`` counts what hand-made dirt holds."""

import json

import pytest

from dynamo_mtl.cli import main
from dynamo_mtl.config import load_config
from dynamo_mtl.errors import DataError
from dynamo_mtl.model.backbone import load_tokenizer
from dynamo_mtl.setup.confusable import look_alike
from dynamo_mtl.setup.data_check import SplitProfile, check_data, refuse_faults
from dynamo_mtl.setup.data_remarks import remarks
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.tasks.task import Example

CONTEXT = "The bridge was built in 1889 by engineers from Lyon."


def _question(text, answer="1889", start=24):
    return {"question": text, "context": CONTEXT, "answers": {"text": [answer], "answer_start": [start]}}


SENTIMENT = [
    {"text": "good", "label": 1},
    {"text": "good", "label": 1},  # a duplicate
    {"text": "good", "label": 0},  # and a contradiction
    {"text": "   ", "label": 0},  # blank
    {"text": "bad \ud800 text", "label": 0},  # a lone surrogate
    {"text": None, "label": 0},  # unusable from here on
    {"text": "x", "label": 7},
    {"text": 5, "label": 1},
    {"label": 1},
    {"text": "x", "label": None},
]
QA = [
    _question("When?"),
    _question("Who?", "engineers", CONTEXT.index("engineers")),
    _question("Where?", "Paris", 3),
    _question("Why?") | {"answers": {"text": [], "answer_start": []}},
    _question("How?") | {"answers": 3},
]
TRANSLATION = [{"source": "a b", "target": "c d"}, {"source": "long " * 400, "target": "many words " * 40}]


@pytest.fixture
def config(tiny_settings, tmp_path):
    splits = {
        "sentiment": (SENTIMENT, [{"text": "good", "label": 1}, {"text": "new", "label": 1}]),
        "qa": (QA, [_question("Whose?")]),
        "translation": (TRANSLATION, [{"source": "e", "target": "f"}]),
    }
    for task, (train, validation) in splits.items():
        (tmp_path / task).mkdir()
        for name, rows in (("train", train), ("validation", validation)):
            (tmp_path / task / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "sentiment" / "train.jsonl").open("a") as file:
        file.write("{broken\n[1, 2]\n" + json.dumps({"text": "after it", "label": 1}) + "\n")
    kept = {key: {n: tiny_settings[key][n] for n in splits} for key in ("tasks", "lora_configs")}
    data = {k: v for k, v in tiny_settings["data"].items() if not k.endswith("_data_path")}
    data |= {f"{n}_data_path": str(tmp_path / n) for n in splits} | {"max_windows": 2}
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml({**tiny_settings, **kept, "data": data, "visualization_dir": str(tmp_path)}))
    return path


@pytest.mark.promise("D3")
def test_every_kind_of_dirt_is_counted(config):
    """Fails without ``refuse``: the first broken row would end the reading."""
    profile = check_data(load_config(config))
    train = profile["sentiment"]["train"]
    assert (train.rows, train.usable) == (13, 6)
    assert {kind: fault.rows for kind, fault in train.faults.items()} == {
        "no value in 'text'": 1,
        "label out of range": 1,
        "'text' is not text": 1,
        "no column 'text'": 1,
        "no value in 'label'": 1,
        "not valid JSON": 1,
        "not a JSON object": 1,
    }
    assert train.faults["label out of range"].first.startswith(f"{config.parent}/sentiment/train.jsonl, line 7: ")
    assert (train.duplicates, train.contradictions, train.empty_texts) == (2, 1, 1)
    assert train.labels == {"positive": 3, "negative": 3}
    assert {kind: fault.rows for kind, fault in profile["qa"]["train"].faults.items()} == {
        "answer not in its context": 1,
        "no answer": 1,
        "answers of another form": 1,
    }
    cut = profile["translation"]["train"]
    assert (cut.cut_sources, cut.lost_targets) == (0.5, 0.5)
    assert cut.source_tokens["max"] > 150
    with pytest.raises(DataError, match=r"sentiment, train: 7 of 13 rows cannot be used; .*line 6"):
        refuse_faults(profile, "refuse")


@pytest.mark.promise("D4")
def test_what_train_and_validation_share_is_found(config):
    """Fails if inputs are compared with their targets, or only within a split."""
    profile = check_data(load_config(config))
    assert profile["sentiment"]["validation"].seen_in_train == 1
    assert profile["qa"]["validation"].seen_in_train == 0
    assert "sentiment: 1 inputs (50.0 %) of validation are in train too" in remarks(profile)


def test_labels_that_training_lacks_are_named(config):
    (config.parent / "sentiment" / "train.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 0}\n')
    profile = check_data(load_config(config))
    assert profile["sentiment"]["validation"].labels_never_trained == ["positive"]
    said = remarks(profile)
    assert "sentiment, validation: labels that train does not have: positive" in said
    assert "sentiment, train: every row has the label negative" in said


def test_the_command_prints_writes_and_leaves_with_2(config, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", str(config), "--output", str(tmp_path / "profile.json")])
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert "sentiment" in shown.out
    assert "rows cannot be used" in shown.err
    written = json.loads((tmp_path / "profile.json").read_text())
    assert written["sentiment"]["train"]["faults"]["not valid JSON"]["rows"] == 1


def test_the_sample_corpus_is_clean(tiny_config_file, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", str(tiny_config_file), "--sample", "50"])
    assert stop.value.code == 0
    assert "leaked" in capsys.readouterr().out


def test_tasks_that_look_alike_by_their_words_are_named(tiny_roberta):
    """By hand: the words of b's two texts are those of a's training texts and of its own, in turns."""
    tokenizer = load_tokenizer(tiny_roberta)
    train = {"a": [Example("red red", None, "")], "b": [Example("blue blue", None, "")], "none": []}
    validation = {"a": [Example("red", None, "")], "b": [Example("red", None, ""), Example("blue", None, "")]}
    found = look_alike(train, validation, tokenizer)
    assert found == {"a": {}, "b": {"a": 0.5}}
    profile = {name: {split: SplitProfile() for split in ("train", "validation")} for name in "ab"}
    profile["b"]["validation"].looks_like = found["b"]
    (said,) = remarks(profile)
    assert said.startswith(
        "a and b look alike: by its words alone, 50 % of the inputs of one are taken for the other's."
    )
    assert look_alike({"a": train["a"]}, validation, tokenizer) == {}
