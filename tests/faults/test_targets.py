"""What a row says is what is learned: given offsets, spans, held-out shares; what cannot be learned is counted."""

import csv
import json
from collections import Counter

import pytest

from dynamo_mtl.config import load_config
from dynamo_mtl.data.data_config import DataConfig
from dynamo_mtl.errors import ConfigError, DataError
from dynamo_mtl.setup.data_check import check_data
from dynamo_mtl.setup.data_remarks import remarks
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.tasks.registry import task_types
from dynamo_mtl.tasks.tables import FileSplit, all_examples, open_task_table
from dynamo_mtl.tasks.task import Example

CONTEXT = "In 1910 a mill burned. The tower was built in 1910."


def _task(kind, **settings):
    task = task_types()[kind]
    return task("t", task.Config(type=kind, **settings))


@pytest.mark.parametrize(
    "row",
    [
        {"answer": "1910", "answer_start": 46},
        {"answer": "1910", "answer_start": "46"},
        {"answer": "1910", "answer_start": 46.0},
        {"answers": ["1910"], "answer_start": [46]},
        {"answers": {"text": "1910", "answer_start": 46}},
        {"answers": {"text": ["1910"], "answer_start": ["46"]}},
        {"answers": '{"text": ["1910"], "answer_start": [46]}'},
        {"answers": [{"text": "1910", "answer_start": 46}]},
        {"answer": " 1910", "answer_start": 45},
    ],
)
def test_a_given_offset_is_the_one_that_counts(row):
    """The answer stands twice; fails where the first place is taken."""
    pairs = json.loads(_task("qa").read({"question": "When?", "context": CONTEXT, **row}, "here").target)
    assert [(text.strip(), start + len(text) - len(text.lstrip())) for text, start in pairs] == [("1910", 46)]


def test_a_column_of_offsets_can_be_named_and_must_be_right():
    row = {"question": "When?", "context": CONTEXT, "answer": "1910", "begin": 46}
    task = _task("qa", columns={"answer_start": "begin"})
    assert json.loads(task.read(row, "here").target) == [["1910", 46]]
    with pytest.raises(DataError, match=r"here: the answer '1910' .* does not stand at character 45"):
        task.read({**row, "begin": 45}, "here")
    with pytest.raises(DataError, match="needs a column 'begin'"):
        task.read({key: value for key, value in row.items() if key != "begin"}, "here")
    assert _task("qa").reading_note(row, _task("qa").read(row, "here")) == (
        "the answer stands several times in its context: the first is taken"
    )


def _profile(tmp_path, tiny_settings, kind, rows, **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "data": {"t_data_path": str(path), "cache_dir": str(tmp_path / "cache"), "max_source_length": 32,
                 "window_overlap": 8, "max_windows": 2},
        "tasks": {"t": {"type": kind, "validation_share": 0.5, **settings}},
        "model": tiny_settings["model"],
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(dump_yaml(config))
    return check_data(load_config(tmp_path / "c.yaml"))


def test_entities_that_no_tagger_could_spell_are_counted_by_reason(tmp_path, tiny_settings):
    def row(number, start, end, *more):
        text = f"Ulm {number} is the town"
        return {"text": text, "entities": [{"start": start, "end": end, "label": "ORG"}, *more]}

    inner = {"start": 0, "end": 3, "label": "LOC"}
    far = {"text": "word " * 200 + "Ulm", "entities": [{"start": 1000, "end": 1003, "label": "LOC"}]}
    rows = [row(n, 0, 3) for n in range(10)]  # can be learned
    rows += [row(n, 0, 5, inner) for n in range(10, 16)] + [row(n, 11, 13) for n in range(20, 24)] + [far] * 2
    rows += [row(n, -1 + 1, 4) for n in range(30, 34)]  # a blank at the edge
    profile = _profile(tmp_path, tiny_settings, "ner", rows)["t"]
    lost = Counter()
    notes = Counter()
    for split in profile.values():
        lost.update(split.lost_reasons)
        notes.update(split.reading_notes)
    assert lost["an entity overlaps another one"] == 6
    assert lost["an entity is in no window"] == 2
    assert lost["an entity begins or ends inside of a token"] == 4
    assert notes == {"blanks at the edge of an entity are left out": 4}
    assert any("of targets cannot be learned as they stand: " in said for said in remarks({"t": profile}))


def test_blanks_and_empty_words_name_nothing():
    task = _task("token_classification", kinds=["ORG"])
    row = {
        "text": "Ulm  is",
        "entities": [{"start": 3, "end": 5, "label": "ORG"}, {"start": 0, "end": 4, "label": "ORG"}],
    }
    assert json.loads(task.read(row, "here").target) == [[0, 3, "ORG"]]
    example = task.read({"tokens": ["Ulm", "", "Hall"], "tags": ["B-ORG", "B-ORG", "I-ORG"]}, "here")
    assert (example.text, json.loads(example.target)) == ("Ulm Hall", [[0, 8, "ORG"]])


def test_answers_that_are_too_long_or_cut_off_are_counted(tmp_path, tiny_settings):
    words = "a b c d e f g h"
    long = [{"question": f"Which {n}?", "context": f"{n}: {words}.", "answer": words} for n in range(6)]
    far = [{"question": f"Who {n}?", "context": f"{n} " + "well " * 300 + "Ada.", "answer": "Ada"} for n in range(4)]
    profile = _profile(tmp_path, tiny_settings, "qa", long + far, max_answer_tokens=5)["t"]
    lost = Counter()
    for split in profile.values():
        lost.update(split.lost_reasons)
    assert lost == {
        "the answer has more than max_answer_tokens (5) tokens": 6,
        "the answer is in no window, or begins or ends inside of a token": 4,
    }
    said = " ".join(remarks({"t": profile}))
    assert "of sources are longer than what is read" in said


def test_a_share_is_held_out_of_every_label_and_stays(tmp_path):
    """As many as the share says, also of a rare label and of a file in the order of its labels."""
    task = _task("classification", labels=["a", "b", "c"])
    rows = [Example(f"text {n}", None, "0") for n in range(100)] + [Example(f"other {n}", None, "1") for n in range(40)]
    rows += [Example(f"rare {n}", None, "2") for n in range(3)]

    def held_out(examples):
        parts = FileSplit(task, 0.1)
        return [example for example in examples if parts.is_held_out(example)]

    chosen = held_out(rows)
    assert Counter(example.target for example in chosen) == {"0": 10, "1": 4, "2": 1}
    grown = held_out([*rows, *(Example(f"new {n}", None, "0") for n in range(60))])
    assert grown[: len(chosen)] == chosen
    twice = held_out([*rows, *rows])
    assert {example.text for example in twice} == {example.text for example in chosen}


def test_questions_about_one_passage_stay_on_one_side(tmp_path):
    """Few questions over many passages: neither is held out by its words, nor does a passage leak."""
    rows = [
        {"question": question, "context": f"Contract {n} was signed by Anna.", "answer": answer}
        for n in range(40)
        for question, answer in (("Who signed?", "Anna"), ("What is it?", "Contract"))
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = _task("qa", validation_share=0.25)
    config = DataConfig(cache_dir=str(tmp_path / "cache"), paths={"t": str(path)})
    train, held_out = (list(all_examples(open_task_table(task, split, config, 0))) for split in ("train", "validation"))
    assert (len(train), len(held_out)) == (60, 20)
    assert not {e.context for e in train} & {e.context for e in held_out}
    assert {e.text for e in held_out} == {"Who signed?", "What is it?"}


def test_passages_of_two_files_that_meet_are_counted(tmp_path, tiny_settings):
    rows = [{"question": f"Who {n}?", "context": f"Ada {n % 4} sang.", "answer": "Ada"} for n in range(8)]
    for name, own in (("train", rows[:6]), ("validation", rows[6:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    config = {"data": {"t_data_path": str(tmp_path)}, "tasks": {"t": {"type": "qa"}}, "model": tiny_settings["model"]}
    (tmp_path / "c.yaml").write_text(dump_yaml(config))
    profile = check_data(load_config(tmp_path / "c.yaml"))
    assert profile["t"]["validation"].seen_in_train == 0
    assert profile["t"]["validation"].contexts_in_train == 2
    assert "t: 2 passages of validation are in train too" in remarks(profile)


def test_few_validation_rows_are_said_in_words(tmp_path, tiny_settings):
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(40)]
    said = remarks({"t": _profile(tmp_path, tiny_settings, "classification", rows, labels=["a", "b"])["t"]})
    assert any("validation: 20 rows; a share that is measured on so few may be off by 22 points" in one for one in said)


def test_what_train_refuses_the_checks_refuse(tmp_path, tiny_settings, capsys):
    """One file as both splits, and a seed that no generator takes."""
    from dynamo_mtl.cli import main

    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *((f"text {n}", "ab"[n % 2]) for n in range(30))])
    settings = {
        "data": {"t_data_path": str(tmp_path / "t.csv"), "cache_dir": str(tmp_path / "cache")},
        "tasks": {"t": {"type": "classification", "labels": ["a", "b"]}},
        "model": tiny_settings["model"],
    }
    (tmp_path / "c.yaml").write_text(dump_yaml(settings))
    for command in (["doctor"], ["data", "check"], ["train"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, str(tmp_path / "c.yaml")])
        assert stop.value.code == 2
        said = capsys.readouterr()
        assert "single file, which would be both training and validation data" in said.out + said.err
    with pytest.raises(ConfigError, match=r"training\.seed: input should be less than or equal to 4294967295"):
        load_config(tmp_path / "c.yaml", ["training.seed=20261127060000"])
