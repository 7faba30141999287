"""Reading data: every format, and a sentence with file and line for what is wrong."""

import gzip
import json

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from dynamo_mtl.data.data_config import DataConfig
from dynamo_mtl.data.locations import find_files
from dynamo_mtl.data.sources import sample_of
from dynamo_mtl.errors import ConfigError, DataError
from dynamo_mtl.tasks.registry import task_types
from dynamo_mtl.tasks.tables import check_splits, example_at, open_task_table

ROWS = [{"text": f"Zeile {n} – “quoted”", "label": n % 2} for n in range(5)]


@pytest.fixture
def config(tmp_path):
    return DataConfig(cache_dir=str(tmp_path / "cache"))


def _read(path, config, split="train", kind="sentiment"):
    task = task_types()[kind]
    named = task(kind, task.Config(type=kind))
    return open_task_table(named, split, config.model_copy(update={"paths": {kind: str(path)}}), 0)


def _write(folder, name, rows=ROWS):
    path = folder / name
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith(".jsonl"):
        path.write_text(lines, encoding="utf-8")
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif name.endswith(".csv"):
        body = "".join('"{}",{}\n'.format(r["text"].replace('"', '""'), r["label"]) for r in rows)
        path.write_text("text,label\n" + body, encoding="utf-8")
    elif name.endswith(".tsv"):  # as GLUE writes it
        path.write_text("sentence\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in rows), encoding="utf-8")
    elif name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz", "train.csv", "train.tsv", "train.parquet"])
def test_every_format_gives_the_same_examples(tmp_path, config, name):
    _write(tmp_path, name)
    table = _read(tmp_path, config)
    assert [example_at(table, i).text for i in range(5)] == [row["text"] for row in ROWS]
    assert [example_at(table, i).target for i in range(5)] == ["0", "1", "0", "1", "0"]


def test_the_official_squad_file(tmp_path, config):
    question = {"id": "a1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}
    article = {"title": "t", "paragraphs": [{"context": "Ada wrote it.", "qas": [question]}]}
    (tmp_path / "dev-v1.1.json").write_text(json.dumps({"version": "1.1", "data": [article]}))
    example = example_at(_read(tmp_path, config, "validation", "qa"), 0)
    assert (example.text, example.context) == ("Who?", "Ada wrote it.")
    assert json.loads(example.target) == [["Ada", 0]]


def test_tables_are_memory_mapped_and_cached(tmp_path, config, monkeypatch):
    path = _write(tmp_path, "train.jsonl")
    table = _read(tmp_path, config)
    assert table.cache_files
    with monkeypatch.context() as patch:
        patch.setattr(task_types()["sentiment"], "read", None)  # a second reading would fail
        assert _read(tmp_path, config)["text"][:] == table["text"][:]
    path.write_text('{"text": "new", "label": 1}\n')
    assert [r["text"] for r in _read(tmp_path, config)] == ["new"]  # a changed file is read again


def test_a_sample_is_the_same_for_the_same_seed(tmp_path, config):
    _write(tmp_path, "train.jsonl", [{"text": str(n), "label": 0} for n in range(50)])
    table = _read(tmp_path, config)
    one, two, other = (sample_of(table, 10, seed)["text"] for seed in (1, 1, 2))
    assert list(one) == list(two) != list(other)
    assert len(set(one)) == 10
    assert len(sample_of(table, 99, 1)) == 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "label": 0}\n{"text": \n', r"train\.jsonl, line 2: not valid JSON"),
        ('{"text": "a", "label": 0}\n[1]\n', r"line 2: expected a JSON object, found list"),
        ('{"text": "a", "label": 7}\n', r"line 1: label 7 .* out of range"),
        ('{"text": "a"}\n', r"line 1: task 'sentiment' needs a column 'label', found text"),
        ('{"text": null, "label": 1}\n', r"line 1: column 'text' of task 'sentiment' is empty"),
        ('{"text": 5, "label": 1}\n', r"line 1: column 'text' .* should be text, found 5"),
        ("", r"the split 'train' is empty"),
        (b"\xff{", r"not UTF-8"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, config, content, message):
    path = tmp_path / "train.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        _read(tmp_path, config)


def test_broken_files_of_other_formats_are_named(tmp_path, config):
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"train\.parquet: not a Parquet file"):
        _read(tmp_path, config)
    (tmp_path / "train.csv").write_text("text,label\na,1,2\n")
    with pytest.raises(DataError, match=r"train\.csv, line 2: expected 2 columns"):
        _read(tmp_path, config)
    (tmp_path / "train.parquet").unlink()
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train.json").write_text("[1, 2]")
    with pytest.raises(DataError, match=r"train\.json, item 1: expected a JSON object, found int"):
        _read(tmp_path, config)
    (tmp_path / "train.json").unlink()
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a", "label": 1}\n' * 50)[:-12])
    with pytest.raises(DataError, match=r"train\.jsonl\.gz: cannot be read"):
        _read(tmp_path, config)


def test_missing_places_are_named(tmp_path, config):
    with pytest.raises(DataError, match="no such file or folder"):
        _read(tmp_path / "nowhere", config)
    with pytest.raises(DataError, match="no file for the split 'train'"):
        _read(tmp_path, config)
    with pytest.raises(DataError, match="could be read from the hub"):
        _read("nobody/nothing", config)
    task = task_types()["qa"]
    named = task("qa", task.Config(type="qa"))
    with pytest.raises(ConfigError, match=r"data\.qa_data_path: missing"):
        open_task_table(named, "train", config, 0)


def test_a_file_by_itself_overrides_the_split(tmp_path, config):
    _write(tmp_path, "train.jsonl")
    other = _write(tmp_path, "other.csv", ROWS[:2])
    task = task_types()["sentiment"]
    named = task("s", task.Config(type="sentiment", validation_file=str(other)))
    paths = config.model_copy(update={"paths": {"s": str(tmp_path)}})
    assert len(open_task_table(named, "validation", paths, 0)) == 2
    assert len(open_task_table(named, "train", paths, 0)) == 5


def test_a_root_is_put_before_relative_paths(tmp_path, config, monkeypatch):
    (tmp_path / "reviews").mkdir()
    _write(tmp_path / "reviews", "train.jsonl")
    rooted = config.model_copy(update={"root": str(tmp_path)})
    assert len(_read("reviews", rooted)) == 5
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"none/reviews: no such file or folder"):  # not a data set of the hub
        _read("reviews", config.model_copy(update={"root": "none"}))


def test_find_file_knows_the_names_of_published_splits(tmp_path):
    _write(tmp_path, "dev.tsv")
    assert find_files(str(tmp_path), "validation") == [tmp_path / "dev.tsv"]
    assert find_files("owner/name", "train") is None


def test_one_file_is_not_both_training_and_validation_data(tmp_path, config):
    path = _write(tmp_path, "rows.jsonl")
    task = task_types()["sentiment"]
    paths = config.model_copy(update={"paths": {"s": str(path)}})
    with pytest.raises(ConfigError, match=r"rows\.jsonl is a single file.*tasks\.s\.validation_file"):
        check_splits(task("s", task.Config(type="sentiment")), paths)
    check_splits(task("s", task.Config(type="sentiment", validation_file=str(tmp_path))), paths)
    with pytest.raises(ConfigError, match=r"rows\.jsonl is one file, without a split 'test'"):
        open_task_table(task("s", task.Config(type="sentiment", validation_file=str(path))), "test", paths, 0)


def test_a_hub_data_set_is_read_as_a_stream_at_its_revision(tmp_path, config, monkeypatch):
    asked = {}

    def stand_in(name, configuration, **options):
        asked.update(name=name, configuration=configuration, **options)
        return iter(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    table = _read("owner/reviews", config.model_copy(update={"revision": "abc"}))
    assert len(table) == 5
    stream = {"split": "train", "revision": "abc", "streaming": True}
    assert asked == {"name": "owner/reviews", "configuration": None, **stream}
    _read("owner/reviews:films", config.model_copy(update={"revision": "abc"}))
    assert asked == {"name": "owner/reviews", "configuration": "films", **stream}


def test_a_hub_data_set_that_is_a_program_is_read_from_its_converted_branch(config, monkeypatch):
    """What ``datasets`` says about a script is its own text; fails if that text, or the other branch, is not known."""
    revisions = []

    def stand_in(name, configuration, *, revision, **options):
        revisions.append(revision)
        if revision != "refs/convert/parquet":
            raise RuntimeError("Dataset scripts are no longer supported, but found reviews.py")
        return iter(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    assert len(_read("owner/scripted", config)) == 5
    assert revisions == [None, "refs/convert/parquet"]
    with pytest.raises(DataError, match=r"owner/pinned: .*scripts are no longer supported, but found reviews\.py"):
        _read("owner/pinned", config.model_copy(update={"revision": "abc"}))
