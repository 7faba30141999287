import gzip
import json

import pytest

from dynamo_mtl.data.data_config import DataConfig
from dynamo_mtl.data.everyday import TYPES, everyday_rows
from dynamo_mtl.data.locations import set_name
from dynamo_mtl.data.samples import sample_rows
from dynamo_mtl.data.text_files import Reading
from dynamo_mtl.errors import DataError
from dynamo_mtl.tasks.registry import task_types
from dynamo_mtl.tasks.task_config import TaskConfig
from dynamo_mtl.tasks.unlabelled import read_unlabelled, unlabelled_examples


def task(kind="sentiment", name="reviews", **settings):
    labels = {"labels": ["negative", "positive"]} if kind == "sentiment" else {}
    of_type = task_types()[kind]
    return of_type(name, of_type.Config(type=kind, **labels, **settings))


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_only_the_columns_of_the_input_are_read(tmp_path):
    place = written(tmp_path / "a.jsonl", [{"review": "Fine.", "label": "no such label", "stars": 9}])
    (one,) = unlabelled_examples(task(), place, "train", DataConfig(), 10)
    assert (one.text, one.context, one.target) == ("Fine.", None, "")


def test_a_known_name_is_found_beside_the_configured_one():
    named = task(columns={"text": "Kommentar"})
    assert read_unlabelled(named, {"Kommentar": "gut"}, "here").text == "gut"
    assert read_unlabelled(named, {"text": "good"}, "here").text == "good"


def test_columns_in_capitals_and_by_language_are_found():
    assert read_unlabelled(task(), {"Review": "Good."}, "here").text == "Good."
    german = task("translation", "german")
    assert read_unlabelled(german, {"en": "A dog.", "de": "Ein Hund."}, "here").text == "A dog."
    assert read_unlabelled(german, {"translation": {"en": "A dog.", "de": "x"}}, "here").text == "A dog."


def test_words_in_a_list_are_joined():
    tags = task("token_classification", kinds=["PER", "LOC"])
    assert read_unlabelled(tags, {"tokens": ["Anna", "left", "."]}, "here").text == "Anna left ."


def test_a_question_needs_its_passage():
    qa = task("qa")
    assert read_unlabelled(qa, {"question": "Who?", "context": "Anna."}, "here").context == "Anna."
    with pytest.raises(DataError, match="here: task 'reviews' needs the context of its input in a column 'context'"):
        read_unlabelled(qa, {"question": "Who?"}, "here")


@pytest.mark.parametrize("value", [None, " ", 7])
def test_a_row_without_a_text_is_refused_or_left_out(tmp_path, value, caplog):
    place = written(tmp_path / "a.jsonl", [{"text": "one"}, {"text": value}])
    with pytest.raises(DataError, match=r"a.jsonl, line 2: task 'reviews' needs the text of its input"):
        unlabelled_examples(task(), place, "train", DataConfig(), 10)
    found = unlabelled_examples(task(), place, "train", DataConfig(bad_rows="skip"), 10)
    assert [one.text for one in found] == ["one"]
    assert "1 rows are left out: 1 with no text" in caplog.text


def test_lines_of_a_text_file_are_texts(tmp_path):
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as file:
        file.write("one\n\n two \n")
    place = str(tmp_path / "a.txt.gz")
    assert [one.text for one in unlabelled_examples(task(), place, "train", DataConfig(), 10)] == ["one", "two"]
    with pytest.raises(DataError, match="has two parts, and a line has one; give a table with the columns question"):
        unlabelled_examples(task("qa"), place, "train", DataConfig(), 10)


def test_lines_are_read_as_the_task_says_and_damage_is_one_sentence(tmp_path):
    (tmp_path / "a.txt").write_bytes("caf\u00e9".encode("cp1252"))
    french = task(reading=Reading(encoding="cp1252"))
    assert unlabelled_examples(french, str(tmp_path / "a.txt"), "train", DataConfig(), 9)[0].text == "caf\u00e9"
    whole = gzip.compress(b"one\ntwo\n" * 500)
    (tmp_path / "b.txt.gz").write_bytes(whole[:20] + b"\xff\xff\xff" + whole[23:])
    with pytest.raises(DataError, match=r"b.txt.gz: cannot be read"):
        unlabelled_examples(task(), str(tmp_path / "b.txt.gz"), "train", DataConfig(), 9)


def test_a_choice_of_many_rows_is_always_the_same_and_from_everywhere(tmp_path):
    place = written(tmp_path / "a.jsonl", [{"text": str(number)} for number in range(1000)])
    one, same = (unlabelled_examples(task(), place, "train", DataConfig(), 100) for _ in range(2))
    assert one == same
    numbers = [int(example.text) for example in one]
    assert len(set(numbers)) == 100
    assert 350 < sum(numbers) / 100 < 650


def test_an_empty_file_and_a_missing_one_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(DataError, match="has no texts of task 'reviews'"):
        unlabelled_examples(task(), str(tmp_path / "a.txt"), "train", DataConfig(), 10)
    with pytest.raises(DataError, match=r"[Nn]o such file"):
        unlabelled_examples(task(), "b.txt", "train", DataConfig(root=str(tmp_path)), 10)


def test_sets_are_called_after_their_file_or_folder():
    assert set_name("many/cr/validation.jsonl.gz") == "cr"
    assert set_name("many/amazon books") == "amazon_books"
    assert set_name("summarization/xsum_sample_200.jsonl.gz") == "xsum_sample_200"
    assert TaskConfig(type="qa", shift_files=["a/b.csv", "c/dev.jsonl"]).shift_files == {
        "b": "a/b.csv",
        "c": "c/dev.jsonl",
    }
    with pytest.raises(ValueError, match="two files have the name 'b'"):
        TaskConfig(type="qa", shift_files=["a/b.csv", "c/b.csv"])


@pytest.mark.parametrize("kind", TYPES)
def test_the_everyday_set_has_forty_inputs_of_its_kind(kind):
    own = task(kind, kind)
    texts = [read_unlabelled(own, row, kind) for row in everyday_rows(kind)]
    assert len({(one.text, one.context) for one in texts}) >= 40
    assert everyday_rows("classification") == []


def test_the_everyday_set_is_no_training_data():
    """Fails if a text of the built-in corpus stands in it word for word."""
    for kind in TYPES:
        own = task(kind, kind)
        known = {str(value) for row in sample_rows(kind, "train") for value in row.values()}
        assert not known & {read_unlabelled(own, row, kind).text for row in everyday_rows(kind)}
