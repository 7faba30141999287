"""From somebody's own tables to a configuration, and to what is in the way of it."""

import csv
import json

import pytest

from dynamo_mtl.cli import main
from dynamo_mtl.config import load_config
from dynamo_mtl.errors import ConfigError, DataError
from dynamo_mtl.setup.data_check import check_data
from dynamo_mtl.setup.guess import guess_task
from dynamo_mtl.setup.init import guess_tasks, starter_config
from dynamo_mtl.tasks.registry import make_tasks
from dynamo_mtl.tasks.tables import TRAIN, first_examples, open_task_table


def _table(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def tables(tmp_path):
    """A user's three files: opinions, topics, and questions with the text that answers them."""
    opinions = [(f"I was {word} with parcel {n}.", mood) for n in range(30)
                for word, mood in (("happy", "positive"), ("angry", "negative"))]  # fmt: skip
    topics = [(f"My {thing} is late, ticket {n}", thing) for n in range(20) for thing in ("bus", "parcel", "bill")]
    faq = [(f"When does shop {n} open?", f"Shop {n} opens at {n % 12 + 1} o'clock.", f"{n % 12 + 1} o'clock")
           for n in range(40)]  # fmt: skip
    return [
        _table(tmp_path / "opinions.csv", ["comment", "mood"], opinions),
        _table(tmp_path / "topics.csv", ["text", "category"], topics),
        _table(tmp_path / "faq.csv", ["question", "context", "answer"], faq),
    ]


def test_files_are_known_by_their_columns(tables, tmp_path):
    opinions, topics, faq = map(guess_task, tables)
    assert (opinions.type, opinions.settings["columns"]) == ("sentiment", {"text": "comment", "label": "mood"})
    assert opinions.settings["labels"] == ["negative", "positive"]
    assert (topics.type, topics.settings) == ("classification", {"labels": ["bill", "bus", "parcel"]})
    assert (faq.type, faq.settings) == ("qa", {})
    code = _table(tmp_path / "code.csv", ["intent", "snippet"], [("add", "a + b")])
    assert guess_task(code).type == "code_generation"
    numbered = _table(tmp_path / "n.csv", ["sentence", "label"], [(f"text {n}", n % 3) for n in range(30)])
    assert guess_task(numbered).settings == {"labels": ["class 0", "class 1", "class 2"]}


def test_numbers_are_labels_by_their_names(tmp_path):
    """Stars from 1 to 5, and eleven classes: as whole numbers of JSON, and in their own order."""
    for name, values in (("stars", range(1, 6)), ("many", range(11)), ("yes", (False, True))):
        rows = [{"text": f"text {n} of {value}", "label": value} for n in range(40) for value in values]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        (tmp_path / "c.yaml").write_text(starter_config(guess_tasks([path]), "minilm"))
        task = make_tasks(load_config(tmp_path / "c.yaml").tasks)[name]
        labels = task.config.labels
        assert [labels[int(task.read(row, "row").target)].removeprefix("class ") for row in rows] == [
            str(row["label"]) for row in rows
        ]


def test_the_configuration_is_valid_and_its_data_can_be_used(tables, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(starter_config(guess_tasks(tables), "minilm"))
    config = load_config(path, [f"data.cache_dir={tmp_path / 'cache'}"])
    assert {name: task.type for name, task in config.tasks.items()} == {
        "opinions": "sentiment", "topics": "classification", "faq": "qa",
    }  # fmt: skip
    profile = check_data(config, 20)
    for name, splits in profile.items():
        assert not any(split.faults for split in splits.values()), name
        assert splits["validation"].seen_in_train == 0
    assert sum(split.rows for split in profile["opinions"].values()) == 60


def test_labels_and_names_that_look_like_numbers_stay_text(tmp_path):
    """Fails if YAML 1.1's idea of a number decides what is quoted: the configuration would not read back."""
    rows = [(f"text {n}", ("08", "1e3", "yes", "~")[n % 4]) for n in range(40)]
    path = _table(tmp_path / "2024.csv", ["text", "label"], rows)
    (tmp_path / "config.yaml").write_text(starter_config(guess_tasks([path]), "minilm"))
    config = load_config(tmp_path / "config.yaml")
    assert list(config.tasks) == ["task_2024"]
    assert config.tasks["task_2024"].labels == ["08", "1e3", "yes", "~"]
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml").tasks == config.tasks


def test_a_share_of_a_file_is_held_out_and_stays_held_out(tables, tmp_path):
    """Fails if the parts overlap, or a row changes sides as the file grows."""
    path = tmp_path / "config.yaml"
    path.write_text(starter_config(guess_tasks(tables), "minilm"))
    overrides = [f"data.cache_dir={tmp_path / 'cache'}", "tasks.topics.validation_share=0.3"]
    config = load_config(path, overrides)
    task = make_tasks(config.tasks)["topics"]

    def texts(split):
        return {example.text for example in first_examples(open_task_table(task, split, config.data, 0))}

    train, validation = texts(TRAIN), texts("validation")
    assert not train & validation
    assert len(train | validation) == 60
    assert 8 <= len(validation) <= 28
    with tables[1].open("a", newline="") as file:
        csv.writer(file).writerows([(f"My bus is early, ticket {n}", "bus") for n in range(30)])
    assert texts("validation") >= validation
    assert texts(TRAIN) >= train


def test_answers_may_be_words_of_the_context(tables, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(starter_config(guess_tasks(tables), "minilm"))
    config = load_config(path)
    task = make_tasks(config.tasks)["faq"]
    row = {"question": "When?", "context": "It opens at 9 o'clock.", "answer": "9 o'clock"}
    assert json.loads(task.read(row, "row 1").target) == [["9 o'clock", 12]]
    with pytest.raises(DataError, match="or be words of the context, found 'noon'"):
        task.read({**row, "answer": "noon"}, "row 1")


def test_what_cannot_be_told_is_one_sentence(tmp_path, tables):
    strange = _table(tmp_path / "strange.csv", ["a", "b"], [(f"x {n}", f"y {n}") for n in range(30)])
    with pytest.raises(ConfigError, match="has the columns a, b, from which no task can be guessed"):
        guess_task(strange)
    with pytest.raises(DataError, match="has no rows"):
        guess_task(_table(tmp_path / "empty.csv", ["text", "label"], []))
    (tmp_path / "other").mkdir()
    twin = _table(tmp_path / "other" / "topics.csv", ["text", "category"], [(f"a {n}", "bd"[n % 2]) for n in range(18)])
    with pytest.raises(ConfigError, match="topics: two files have this name"):
        guess_tasks([tables[1], twin])


def test_the_command_writes_once_and_says_what_it_took_each_for(tables, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code in (0, 2):
        with pytest.raises(SystemExit) as stop:
            main(["init", *map(str, tables)])
        assert stop.value.code == code
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "opinions: sentiment: 'mood' has 2 values that come again, beside the texts of 'comment'"
    assert [line.split(": ")[:2] for line in lines[1:3]] == [["topics", "classification"], ["faq", "qa"]]
    assert "config.yaml is there already" in said.err


def test_the_doctor_finds_nothing_or_says_what_to_do(tables, tmp_path, capsys, monkeypatch):
    """Fails if a bad row, or a damaged checkpoint, goes unnoticed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(starter_config(guess_tasks(tables), "minilm"))
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "config.yaml"])
    said = capsys.readouterr().out
    assert stop.value.code == 0, said
    assert "ok      data of topics: " in said
    assert said.endswith("nothing is in the way\n")
    with tables[2].open("a", newline="") as file:
        csv.writer(file).writerow(["When?", "Never.", "noon"])
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "config.yaml"])
    said = capsys.readouterr().out
    assert stop.value.code == 2
    assert "PROBLEM data of faq: " in said
    assert "see: dynamo data check config.yaml" in said
    (tmp_path / "model").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "model"])
    assert stop.value.code == 2
    assert "PROBLEM checkpoint: model: no checkpoint (no dynamo.json); train it again" in capsys.readouterr().out
