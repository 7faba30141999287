"""Tables as people have them: each row is read as it stands, or named by file and line; none is lost in silence."""

import csv
import gzip
import json
import random

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from dynamo_mtl.config.validation import validate
from dynamo_mtl.data.data_config import DataConfig
from dynamo_mtl.data.files import file_rows
from dynamo_mtl.data.locations import find_files
from dynamo_mtl.data.readers import read_rows
from dynamo_mtl.data.text_files import Reading
from dynamo_mtl.errors import ConfigError, DataError
from dynamo_mtl.tasks.registry import task_types
from dynamo_mtl.tasks.tables import all_examples, open_task_table


def _read(path, **reading):
    """Rows, the lines they stand in, and what was refused."""
    refused = []
    found = list(file_rows(path, Reading(**reading), refused.append))
    return [dict(row) for row, _ in found], [where.rpartition(" ")[2] for _, where in found], refused


def _table(path, **settings):
    task = task_types()["classification"]
    config = DataConfig(
        cache_dir=str(path.parent / "cache"), paths={"t": str(path)}, bad_rows=settings.pop("bad_rows", "refuse")
    )
    made = task("t", task.Config(type="classification", train_file=str(path), **settings))
    return list(all_examples(open_task_table(made, "train", config, 0)))


ROWS = [{"text": "the soup, was cold", "label": "neg"}, {"text": "lovely staff", "label": "pos"}]


@pytest.mark.parametrize(
    ("name", "content", "encoding"),
    [
        ("a.csv", 'text,label\n"the soup, was cold",neg\nlovely staff,pos\n', "utf-8"),
        ("a.csv", "text;label\r\nthe soup, was cold;neg\r\nlovely staff;pos\r\n", "utf-8"),
        ("a.csv", "sep=;\ntext;label\nthe soup, was cold;neg\nlovely staff;pos\n", "utf-8"),
        ("a.csv", "text|label\nthe soup, was cold|neg\nlovely staff|pos\n", "utf-8-sig"),
        ("a.csv", "text\tlabel\nthe soup, was cold\tneg\nlovely staff\tpos\n", "utf-16"),
        ("a.tsv", '"text"\t"label"\n"the soup, was cold"\t"neg"\n"lovely staff"\t"pos"\n', "utf-8"),
        ("a.json", json.dumps(ROWS), "utf-8-sig"),
        ("a.json", json.dumps({"data": ROWS}), "utf-8"),
        ("a.json", "".join(json.dumps(row) + "\n" for row in ROWS), "utf-8"),
        ("a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS), "utf-16"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_what_a_file_is_is_seen_from_the_file(tmp_path, name, content, encoding, packed):
    data = content.encode(encoding)
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(data) if packed else data)
    rows, _, refused = _read(path)
    assert (rows, refused) == (ROWS, [])


@pytest.mark.parametrize(
    "content",
    [
        'text,label\n"a sunny day,pos\na grey day,neg\n"a bright day",pos\n',
        'text,label\n"a sunny day,pos\na grey day,neg\na bright day",pos\n',
        'text,label\na grey day,neg\nan icy day,neg\n"a windy day,pos\n',
    ],
)
def test_a_stray_quotation_mark_swallows_no_rows(tmp_path, content):
    """The three lines are three rows; a reader that pairs the marks makes one or two of them."""
    (tmp_path / "a.csv").write_text(content)
    rows, lines, refused = _read(tmp_path / "a.csv")
    assert [row["label"] for row in rows] == [line.rpartition(",")[2] for line in content.splitlines()[1:]]
    assert (lines, refused) == (["2", "3", "4"], [])


def test_a_stray_mark_among_quoted_rows_is_named_by_its_line(tmp_path):
    good = "".join(f'"number {n}, again",{n % 2}\n' for n in range(50))
    (tmp_path / "a.csv").write_text(f'text,label\n{good}"stray one,1\n{good}')
    _, _, refused = _read(tmp_path / "a.csv")
    assert ["line 52: a quotation mark is not closed" in str(error) for error in refused] == [True]


def test_a_cell_that_holds_rows_is_refused_unless_quoting_is_said(tmp_path):
    good = "".join(f'"number {n}, again",pos\n' for n in range(20))
    (tmp_path / "a.csv").write_text(f'text,label\n{good}"a dull day,neg\na dry day,pos\na wet day",pos\n')
    rows, _, refused = _read(tmp_path / "a.csv")
    assert len(rows) == 20
    assert "line 22: a cell runs over several lines, of which one looks like a row" in str(refused[0])
    assert len(_read(tmp_path / "a.csv", quote='"')[0]) == 21


def test_lines_are_counted_as_an_editor_does(tmp_path):
    """Through quoted line breaks, doubled marks and blank lines."""
    (tmp_path / "a.csv").write_text('text,label\n"two\nlines",a\n\n"say ""hi"" now",b\n"three\n\nlines",a\nlast,b\n')
    rows, lines, _ = _read(tmp_path / "a.csv")
    assert rows[0]["text"] == "two\nlines"
    assert rows[1]["text"] == 'say "hi" now'
    assert lines == ["2", "5", "6", "9"]


def test_every_line_that_does_not_fit_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,1\nb,0,more\nc\nd,1\n")
    _, lines, refused = _read(tmp_path / "a.csv")
    assert lines == ["2", "5"]
    assert [str(e).partition(": ")[0].rpartition(" ")[2] for e in refused] == ["3", "4"]
    assert {e.kind for e in refused} == {"another number of columns"}


def test_lines_of_refused_rows_are_counted_through_quoted_line_breaks(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"two\nlines",1\nb,0,more\n\n"three\n\nlines",1\nc\nd,1\n')
    for packed in (False, True):
        path = tmp_path / "a.csv"
        if packed:
            (tmp_path / "a.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
            path = tmp_path / "a.csv.gz"
        assert [str(e).partition(": ")[0].rpartition(" ")[2] for e in _read(path)[2]] == ["4", "9"]


def test_lines_may_end_in_two_ways(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,label\r\na,1\nb,0\r\nc,1\n")
    assert [row["label"] for row in _read(tmp_path / "a.csv")[0]] == ["1", "0", "1"]


def test_values_stay_as_they_are_written(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n007,1.0\nNA,True\nNULL,\n"",x\n')
    assert [tuple(row.values()) for row in _read(tmp_path / "a.csv")[0]] == [
        ("007", "1.0"), ("NA", "True"), ("NULL", ""), ("", "x"),
    ]  # fmt: skip


def test_quotes_that_quote_nothing_are_kept(tmp_path):
    """As in published TSV files, whose texts hold bare marks."""
    (tmp_path / "a.tsv").write_text('sentence\tlabel\n"an odd one\t1\nsay "hi"\t0\n5" pipe\t1\n')
    assert [row["sentence"] for row in _read(tmp_path / "a.tsv")[0]] == ['"an odd one', 'say "hi"', '5" pipe']


def test_another_encoding_is_refused_with_the_setting_that_reads_it(tmp_path):
    (tmp_path / "a.csv").write_bytes("text;label\ncafé “zur Post”;1\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"a\.csv, line 2: not UTF-8 text .*reading\.encoding, such as cp1252"):
        _read(tmp_path / "a.csv")
    assert _read(tmp_path / "a.csv", encoding="cp1252")[0] == [{"text": "café “zur Post”", "label": "1"}]
    with pytest.raises(ConfigError, match=r"encoding: no such encoding; try utf-8, cp1252"):
        validate(Reading, {"encoding": "excel"}, "config.yaml")


def test_a_file_without_names_of_columns_is_read_with_those_of_the_configuration(tmp_path):
    (tmp_path / "a.csv").write_text("a good one,1\na bad one,0\n")
    rows, lines, _ = _read(tmp_path / "a.csv", header=["text", "label"])
    assert rows == [{"text": "a good one", "label": "1"}, {"text": "a bad one", "label": "0"}]
    assert lines == ["1", "2"]


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,text,label\na,b,1\n")
    with pytest.raises(DataError, match="line 1: the column 'text' is there twice"):
        _read(tmp_path / "a.csv")


def test_long_cells_and_odd_names_are_read(tmp_path):
    (tmp_path / "a [1]*.csv").write_text(f"text,label\n{'x' * 3_000_000},1\nb,0\n")
    assert [len(row["text"]) for row in _read(tmp_path / "a [1]*.csv")[0]] == [3_000_000, 1]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "saved"])
def test_labels_have_the_names_of_the_files_own_schema(tmp_path, kind):
    """Fails if numbers are taken by their place in the configuration, which lists the names in another order."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["sport", "city", "art"])}
    )
    table = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 2]}, features=features)
    path = tmp_path / f"train.{kind}"
    if kind == "parquet":
        table.to_parquet(str(path))
    elif kind == "saved":
        path = tmp_path / "train"
        table.save_to_disk(str(path))
    else:
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.data.table.schema) as writer:
            writer.write_table(table.data.table)
    labels = ["art", "City", "sport"]
    assert [labels[int(e.target)] for e in _table(path, labels=labels)] == ["sport", "City", "art"]
    with pytest.raises(DataError, match=r"label 'sport' of task 't' is out of range"):
        _table(path, labels=["games", "town", "painting"])


def test_a_missing_label_of_a_schema_is_missing(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
    datasets.Dataset.from_dict({"text": ["x", "y"], "label": [-1, 1]}, features=features).to_parquet(
        str(tmp_path / "t.parquet")
    )
    assert [example.target for example in _table(tmp_path / "t.parquet", labels=["a", "b"], bad_rows="skip")] == ["1"]


def test_a_cell_that_no_task_reads_does_no_harm(tmp_path):
    """A time that Python has no date for, in a column of its own."""
    far = pyarrow.array([2**62, 2**62], pyarrow.timestamp("us"))
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": ["0", "1"], "when": far}), tmp_path / "t.parquet")
    assert [example.target for example in _table(tmp_path / "t.parquet", labels=["no", "yes"])] == ["0", "1"]
    with pytest.raises(DataError, match="column 'when' holds a value that cannot be read"):
        dict(next(file_rows(tmp_path / "t.parquet", Reading(), print))[0])


def test_rows_that_are_left_out_are_counted_with_their_reasons(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("text,label\na,0\nb,\nc,9\nd,1\ne, \n")
    with pytest.raises(DataError, match=r"line 3: the label of task 't' is empty"):
        _table(tmp_path / "t.csv", labels=["no", "yes"])
    for _ in range(2):  # prepared, and found prepared
        caplog.clear()
        assert [example.text for example in _table(tmp_path / "t.csv", labels=["no", "yes"], bad_rows="skip")] == [
            "a",
            "d",
        ]
        assert "3 rows are left out: 2 with no value in 'label', 1 with label out of range" in caplog.text


def test_splits_are_found_in_shards_in_folders_and_under_other_names(tmp_path):
    for number, row in enumerate(ROWS):
        parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / f"train-{number:05d}-of-00002.parquet")
    (tmp_path / "Validation.csv").write_text("text,label\na,b\n")
    (tmp_path / "trainer.csv").write_text("text,label\nno,split\n")
    assert [dict(row) for row, _ in read_rows(str(tmp_path), "train", DataConfig())] == ROWS
    assert [file.name for file in find_files(str(tmp_path), "validation")] == ["Validation.csv"]
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "saved"))
    assert [dict(row) for row, _ in read_rows(str(tmp_path / "saved"), "train", DataConfig())] == ROWS


def test_deeply_nested_cells_are_one_sentence(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": "0"}\n' + "[" * 200_000 + "\n")
    with pytest.raises(DataError, match=r"t\.jsonl, line 2: not valid JSON"):
        _table(tmp_path / "t.jsonl", labels=["a", "b"])


def test_prepared_rows_follow_the_commit_of_a_hub_data_set(tmp_path, monkeypatch):
    """Fails if what was prepared under no revision is found again after the data set changed."""
    from dynamo_mtl.data import readers

    state = {"sha": "1" * 40, "rows": ROWS, "asked": []}

    class Hub:
        def dataset_info(self, name, revision, timeout):
            if state["sha"] is None:
                raise OSError("offline")
            return type("Info", (), {"sha": state["sha"]})()

    def load(name, configuration, split, revision, streaming):
        state["asked"].append(revision)
        return iter(state["rows"])

    monkeypatch.setattr(readers, "HfApi", Hub)
    monkeypatch.setattr(readers.datasets, "load_dataset", load)
    task = task_types()["classification"]
    made = task("t", task.Config(type="classification", labels=["neg", "pos"]))
    config = DataConfig(cache_dir=str(tmp_path), paths={"t": "somebody/reviews"})

    def texts():
        return [example.text for example in all_examples(open_task_table(made, "train", config, 0))]

    assert texts() == [row["text"] for row in ROWS]
    state.update(sha="2" * 40, rows=ROWS[1:])
    assert texts() == [ROWS[1]["text"]]
    state.update(sha=None, rows=[])
    assert texts() == [ROWS[1]["text"]]  # offline, what was last prepared
    assert state["asked"] == ["1" * 40, "2" * 40]
    assert readers.hub_commit("somebody/reviews", config) == "2" * 40


WORDS = ["good", "bad", "day", "film", '"odd"', "it's", '5"', "one,two", "a;b", "x|y", "#tag", "naïve", "—", "line"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_random_tables_are_read_as_they_were_written(tmp_path, separator):
    """Texts with every sign that separates or quotes, some of several lines, in tables of 2 to 20 rows."""
    rng = random.Random(separator)

    def cell():
        words = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 8)))
        return words + rng.choice(["", "", "", "\nmore text", "\n\nz, q"])

    for number in range(40):
        rows = [{"text": cell(), "label": rng.choice(["pos", "neg"])} for _ in range(rng.randint(2, 20))]
        path = tmp_path / f"{number}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            ends = rng.choice(["\n", "\r\n"])
            writer = csv.DictWriter(file, ["text", "label"], delimiter=separator, lineterminator=ends)
            writer.writeheader()
            writer.writerows(rows)
        assert _read(path)[0::2] == (rows, []), path.read_text(encoding="utf-8")


@pytest.mark.parametrize("encoding", [None, "utf-8", "UTF_8", "utf8"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path, encoding):
    """Fails if the first column is called by the mark and its name where the encoding is given as plain UTF-8."""
    path = tmp_path / "marked.csv"
    path.write_bytes("\ufefftext,label\nthe lift is stuck,1\n".encode())
    rows = list(read_rows(str(path), "train", DataConfig(), reading=Reading(encoding=encoding)))
    assert [dict(row) for row, _ in rows] == [{"text": "the lift is stuck", "label": "1"}]
