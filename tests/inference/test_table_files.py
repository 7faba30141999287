"""Whole tables: files in, files out, in order, resumable; data frames and streams the same way."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import time

import numpy
import pandas
import pyarrow
import pytest
from pyarrow import parquet
from tiny import make_kinds_system, save_system

from dynamo_mtl.cli import main
from dynamo_mtl.errors import ConfigError, DataError
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.inference.bulk import table, table_files
from dynamo_mtl.inference.bulk.table import TableRequest
from dynamo_mtl.inference.bulk.table_files import predict_files
from dynamo_mtl.storage import remove_folder

ROWS = [{"id": number, "text": f"Ada sang {'in Rome ' * (number % 7)}{number}."} for number in range(40)]
AUTO = ["task", "answer", "score", "level", "index", "start", "end", "best_guess", "confidence", "rejected", "error"]


@pytest.fixture(scope="module")
def checkpoint(session_config, tmp_path_factory):
    system = make_kinds_system(session_config.model.model_dump())
    return save_system(system, tmp_path_factory.mktemp("table") / "model")


@pytest.fixture(scope="module")
def model(checkpoint):
    return DynamoInference(checkpoint, device="cpu")


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(table, "WINDOW_ROWS", 8)
    monkeypatch.setattr(table_files, "WINDOW_ROWS", 8)


def write(path, rows):
    """A table of any form, as other programs write it."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    if name.endswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        lines = io.StringIO()
        writer = csv.DictWriter(lines, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
        writer.writeheader()
        writer.writerows(rows)
        text = lines.getvalue()
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        file.write(text)
    return path


def read(path):
    """Its rows, as texts in which nothing and an empty text are the same."""
    if path.name.endswith(".parquet"):
        rows = parquet.read_table(path).to_pylist()
    else:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            if ".jsonl" in path.name:
                rows = [json.loads(line) for line in file]
            else:
                rows = list(csv.DictReader(file, delimiter="\t" if ".tsv" in path.name else ","))
    return [{key: _plain(value) for key, value in row.items()} for row in rows]


def _plain(value):
    if value is None or value == "":
        return None
    if isinstance(value, bool | list | dict):
        return json.dumps(value)
    try:
        return float(value)
    except ValueError:
        return value


ENDINGS = [".jsonl", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_form_is_read_and_written_in_order_with_the_same_answers(model, tmp_path, ending):
    source = write(tmp_path / f"in{ending}", ROWS)
    expected = model.predict_table(ROWS, task_hint="topics")
    for written in (ending, ".jsonl"):
        output = tmp_path / f"out{written}"
        counts = predict_files(model, source, output, TableRequest(task_hint="topics"), overwrite=True)
        assert (counts.rows, counts.failed) == (40, 0)
        found = read(output)
        assert list(found[0]) == ["id", "text", *AUTO] == list(expected[0])
        assert found == [{key: _plain(value) for key, value in row.items()} for row in expected]
        assert not (tmp_path / f"out{written}.partial").exists()


def test_answers_are_those_of_a_call(model):
    found = model.predict_table(ROWS, task_hint="topics", probabilities=True, prefix="d_")
    for row, given, answer in zip(ROWS, found, model([row["text"] for row in ROWS], task_hint="topics"), strict=True):
        assert {key: given[key] for key in row} == row
        assert (given["d_answer"], given["d_task"]) == (answer["label"], "topics")
        assert given["d_score"] == pytest.approx(answer["score"], abs=1e-5)
        assert given["d_probabilities"] == pytest.approx(answer["probabilities"], abs=1e-5)
        assert given["d_routing"] == pytest.approx(answer["routing"]["probabilities"], abs=1e-5)
        assert given["d_confidence"] == pytest.approx(answer["routing"]["confidence"], abs=1e-5)


def test_several_tasks_have_a_column_each(model, tmp_path):
    source, output = write(tmp_path / "in.csv", ROWS[:3]), tmp_path / "out.parquet"
    predict_files(model, source, output, TableRequest(tasks="topics,marks,aspects,names,sums", probabilities=True))
    schema = parquet.read_schema(output)
    new = ["topics", "topics_score", "topics_probabilities", "marks", "marks_probabilities", "aspects",
           "aspects_probabilities", "names", "names_probabilities", "sums", "sums_score", "sums_probabilities",
           "error"]  # fmt: skip
    assert schema.names == ["id", "text", *new]
    assert (schema.field("marks").type, schema.field("topics").type) == (pyarrow.float64(), pyarrow.string())
    found = parquet.read_table(output).to_pylist()
    for row, answer in zip(found, model([row["text"] for row in ROWS[:3]], tasks="topics,marks,aspects"), strict=True):
        assert row["topics"] == answer["answers"]["topics"]["label"]
        assert json.loads(row["aspects"]) == answer["answers"]["aspects"]["labels"]
        assert row["marks"] == pytest.approx(answer["answers"]["marks"]["value"], abs=1e-5)


def test_a_data_frame_keeps_its_index_and_a_generator_is_read_window_by_window(model):
    frame = pandas.DataFrame(ROWS, index=[f"row {number}" for number in range(40)])
    frame.loc["row 3", "text"] = float("nan")
    found = model.predict_table(frame, tasks=["marks"])
    assert list(found.index) == list(frame.index)
    assert list(found.columns) == ["id", "text", "marks", "error"]
    assert found.loc["row 3", "error"] == "column 'text' is empty"
    assert found["marks"].isna().sum() == 1
    taken = []

    def endless():
        while True:
            taken.append(None)
            yield ROWS[0]

    first = next(model.predict_table(endless(), task_hint="topics"))
    assert first["task"] == "topics"
    assert len(taken) == 8


def test_bad_rows_are_answered_with_their_error_in_their_places(model, tmp_path, capsys):
    lines = [json.dumps({"text": "fine", "n": 1}).encode(), b'{"text": "cut', json.dumps({"n": 2}).encode(),
             json.dumps({"text": 7}).encode(), b'"a text"', b'{"text": "caf\xe9"}', b"",
             json.dumps({"text": "fine", "n": 3}).encode(), b"{"]  # fmt: skip
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"\n".join(lines))
    with pytest.raises(SystemExit) as end:
        main(["predict", str(model.checkpoint), "--input", str(source), "--output", str(output), "--tasks", "topics"])
    assert end.value.code == 3
    assert "6 of 8 rows could not be answered" in capsys.readouterr().err
    found = [json.loads(line) for line in output.read_text().splitlines()]
    errors = [row["error"] for row in found]
    assert [error is None for error in errors] == [True, *[False] * 5, True, False]
    for place, sentence in enumerate(
        ["in.jsonl, line 2: not valid JSON", "column 'text' is empty", "column 'text' should be text, found int",
         "line 5: expected a JSON object", "line 6: not UTF-8 text"], start=1,
    ):  # fmt: skip
        assert sentence in errors[place]
    assert "line 9" in errors[7]
    assert [row.get("n") for row in found] == [1, None, 2, None, None, None, 3, None]


def test_lines_of_a_csv_that_do_not_fit_keep_their_place(model, tmp_path):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text('text,n\n"first, quoted",1\nsecond,2,too many\nthird,3\n' + "more,4\n" * 20)
    counts = predict_files(model, source, output, TableRequest(tasks="topics"))
    assert (counts.rows, counts.failed) == (23, 1)
    found = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [row["text"] for row in found[:4]] == ["first, quoted", "", "third", "more"]
    assert "in.csv, line 3: expected 2 columns as in the header, found 3" in found[1]["error"]


def test_one_input_that_fails_spoils_no_other(model, monkeypatch):
    answer = model.predictor.answer

    def fails(questions):
        if any("7" in question.source.body for question in questions):
            raise RuntimeError("broken")
        return answer(questions)

    monkeypatch.setattr(model.predictor, "answer", fails)
    found = model.predict_table(ROWS[:10], tasks="topics")
    assert [row["error"] for row in found] == [None] * 7 + ["could not be answered (RuntimeError)"] + [None] * 2


@pytest.mark.parametrize(
    ("rows", "request_", "sentence"),
    [
        ([{"a": "x", "b": "y"}], {}, "columns: none of a, b is known to hold the texts; name it with text=COLUMN"),
        ([{"text": "x", "question": "y"}], {}, "columns: text and question could each be the text; say which"),
        ([{"text": "x", "passage": "y", "context": "z"}], {}, "columns: passage and context could each be the context"),
        ([{"text": "x"}], {"columns": {"text": "txt"}}, "columns: the table has no column 'txt'; did you mean 'text'"),
        ([{"text": "x"}], {"columns": {"body": "text"}}, "columns: no part 'body' of an input; known: text, context"),
        ([{"text": "x", "score": 1}], {}, "prefix: the table has a column 'score' already; give a prefix"),
        ([{"text": "x"}], {"tasks": "topic"}, "tasks: no task 'topic'; did you mean 'topics'"),
        ([{"text": "x"}], {"tasks": "all", "task_hint": "marks"}, "task_hint: found beside tasks"),
    ],
)
def test_what_cannot_be_is_one_sentence(model, rows, request_, sentence):
    with pytest.raises(ConfigError, match=sentence):
        model.predict_table(rows, **request_)


def test_columns_are_found_by_the_names_of_the_data(model):
    pairs = [{"Question": "who sang?", "passage": "Ada sang in Rome."}]
    assert model.predict_table(pairs, tasks="faq")[0]["error"] is None
    quiz = [{"question": "Who?", "options": ["Ada", "Tom"]}, {"question": "Who?", "options": "['Ada', 'Tom']"},
            {"question": "Who?", "options": "Ada"}]  # fmt: skip
    found = model.predict_table(quiz, tasks="quiz")
    assert found[0]["quiz"] == found[1]["quiz"]
    assert found[2]["error"] == 'column \'options\' should be a list of texts, such as ["yes", "no"]'
    alone = model.predict_table([{"remark": "Ada sang."}], tasks="topics")
    assert alone[0]["topics"] is not None


def test_later_columns_need_json_lines(model, tmp_path):
    rows = [*ROWS[:8], {**ROWS[8], "more": 1}]
    source = write(tmp_path / "in.jsonl", rows)
    with pytest.raises(DataError, match=r"rows 9 to 9: a later row has the column 'more'.*so write .jsonl"):
        predict_files(model, source, tmp_path / "out.csv", TableRequest(tasks="topics"))
    with pytest.raises(DataError, match="several types"):
        predict_files(
            model, write(tmp_path / "b.jsonl", [*ROWS[:8], {**ROWS[8], "id": "nine"}]), tmp_path / "out.parquet",
            TableRequest(tasks="topics"),
        )  # fmt: skip
    predict_files(model, source, tmp_path / "out.jsonl", TableRequest(tasks="topics"))
    assert read(tmp_path / "out.jsonl")[8]["more"] == 1


def test_folders_of_shards(model, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, part in enumerate((ROWS[:5], ROWS[5:12])):
        write(folder / f"part-{number}.parquet", part)
    predict_files(model, folder, tmp_path / "out", TableRequest(tasks="topics"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["part-0.parquet", "part-1.parquet"]
    assert [row["id"] for row in read(tmp_path / "out" / "part-1.parquet")] == list(range(5, 12))
    predict_files(model, folder, tmp_path / "all.csv", TableRequest(tasks="topics"))
    assert [row["id"] for row in read(tmp_path / "all.csv")] == list(range(12))


@pytest.mark.parametrize("ending", [".jsonl", ".csv.gz", ".parquet"])
def test_a_killed_run_goes_on_and_writes_the_same_bytes(model, tmp_path, ending, monkeypatch):
    source, request = write(tmp_path / "in.csv", ROWS), TableRequest(probabilities=True)
    whole, output = tmp_path / f"whole{ending}", tmp_path / f"out{ending}"
    predict_files(model, source, whole, request)
    store, stored = table_files._Run._store_progress, []

    def killed(self):
        if len(stored) == 2:
            raise KeyboardInterrupt
        store(self)
        stored.append(None)

    with monkeypatch.context() as patch:
        patch.setattr(table_files._Run, "_store_progress", killed)
        with pytest.raises(KeyboardInterrupt):
            predict_files(model, source, output, request)
    assert not output.exists()
    with pytest.raises(ConfigError, match=r"an unfinished run left .*go on with --resume"):
        predict_files(model, source, output, request)
    with pytest.raises(ConfigError, match="of another input, model or request"):
        predict_files(model, source, output, TableRequest(), resume=True)
    answered = []
    monkeypatch.setattr(model, "answer_each", lambda *given, own=model.answer_each: answered.append(1) or own(*given))
    counts = predict_files(model, source, output, request, resume=True)
    assert (counts.rows, len(answered)) == (40, 3)
    assert output.read_bytes() == whole.read_bytes()
    with pytest.raises(ConfigError, match="is there already; give another name, or --overwrite"):
        predict_files(model, source, output, request)
    assert predict_files(model, source, output, request, resume=True).rows == 0


def test_a_process_that_is_killed_at_any_moment_loses_no_row(checkpoint, tmp_path):
    """Fails if a row is lost or written twice after SIGKILL."""
    source = write(tmp_path / "in.jsonl", [{"id": n, "text": f"Ada sang in Rome {n}."} for n in range(6000)])
    command = [sys.executable, "-m", "dynamo_mtl.cli", "predict", str(checkpoint), "--input", str(source),
               "--tasks", "topics"]  # fmt: skip
    output = tmp_path / "out.jsonl"
    process = subprocess.Popen([*command, "--output", str(output)], stderr=subprocess.DEVNULL)
    folder = tmp_path / "out.jsonl.partial"
    while process.poll() is None and not (folder / "000000" / "00000000.part").exists():
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not output.exists()
    done = subprocess.run([*command, "--output", str(output), "--resume"], check=True, capture_output=True, text=True)
    assert "6000 rows, 0 of them with an error" in done.stderr
    assert "rows/s" in done.stderr
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == list(range(6000))
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


def test_streams_are_json_lines(checkpoint, tmp_path):
    source = "".join(json.dumps(row) + "\n" for row in ROWS[:3])
    done = subprocess.run(
        [sys.executable, "-m", "dynamo_mtl.cli", "predict", str(checkpoint), "--input", "-", "--output", "-",
         "--task-hint", "topics"],
        input=source, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["id"] for row in found] == [0, 1, 2]
    assert all(row["task"] == "topics" for row in found)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "predict: give either a text, or a table with --input"),
        (["a text", "--input", "x.csv"], "predict: give either a text, or a table with --input"),
        (["a text", "--output", "x.csv"], "--output: is for the rows of a table"),
        (["--input", "missing.csv", "--output", "x.csv"], "--input: missing.csv: no such file or folder"),
        (["--input", "in.csv"], "--output: name a file for the answered rows"),
        (["--input", "in.csv", "--output", "out.xlsx"], "--output: out.xlsx: unknown file type; use one of .jsonl"),
        (["--input", "in.csv", "--output", "in.csv", "--overwrite"], "--output: in.csv is the input"),
        (["--input", "in.csv", "--output", "o.csv", "--column", "text"], "--column: 'text' should be like text=review"),
        (["--input", "in.csv", "--output", "o.csv", "--reading", "encoding=x"], "encoding: no such encoding"),
        (["--input", "in.csv", "--output", "o.csv", "--json"], "--json: is for a single text"),
        (["--input", "in.csv", "--output", "-", "--resume"], "--resume: needs files"),
        (["a text", "--overwrite"], "--overwrite: is for the rows of a table"),
    ],
)  # fmt: skip
def test_wrong_commands_are_one_sentence(checkpoint, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.csv", ROWS[:2])
    with pytest.raises(SystemExit) as end:
        main(["predict", str(checkpoint), *arguments])
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert sentence in said
    assert "Traceback" not in said


def test_a_start_that_is_refused_leaves_nothing_behind(model, tmp_path):
    source = write(tmp_path / "in.csv", [{"a": "x", "b": "y"}])
    for _ in range(2):
        with pytest.raises(ConfigError, match="none of a, b is known to hold the texts"):
            predict_files(model, source, tmp_path / "out.csv", TableRequest(tasks="topics"))
    predict_files(model, source, tmp_path / "out.csv", TableRequest({"text": "a"}, tasks="topics"))
    assert sorted(os.listdir(tmp_path)) == ["in.csv", "out.csv"]


def test_a_run_that_is_killed_before_its_folder_is_removed_is_complete_when_it_goes_on(model, tmp_path, monkeypatch):
    source, output = write(tmp_path / "in.csv", ROWS), tmp_path / "out.csv"
    removed = []

    def killed(folder):
        if folder.name.endswith(".partial"):
            removed.append(folder)
            raise KeyboardInterrupt
        remove_folder(folder)

    with monkeypatch.context() as patch:
        patch.setattr(table_files, "remove_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            predict_files(model, source, output, TableRequest(tasks="topics"))
    written = output.read_bytes()
    assert removed
    assert predict_files(model, source, output, TableRequest(tasks="topics"), resume=True).rows == 40
    assert output.read_bytes() == written
    assert sorted(os.listdir(tmp_path)) == ["in.csv", "out.csv"]


def test_overwriting_a_folder_keeps_the_old_answers_until_all_new_ones_are_there(model, tmp_path, monkeypatch):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(3):
        write(folder / f"{number}.csv", ROWS[:3])
    predict_files(model, folder, output, TableRequest(tasks="topics"))
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    job = table_files._Run._do

    def killed(self, number):
        if number == 2:
            raise KeyboardInterrupt
        job(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(table_files._Run, "_do", killed)
        with pytest.raises(KeyboardInterrupt):
            predict_files(model, folder, output, TableRequest(tasks="marks"), overwrite=True)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert predict_files(model, folder, output, TableRequest(tasks="marks"), resume=True).rows == 9
    assert all("marks" in path.read_text().splitlines()[0] for path in output.iterdir())


def test_two_files_that_would_have_one_name_are_refused(model, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(ROWS[:2]))
    write(folder / "a.jsonl", ROWS[:2])
    with pytest.raises(ConfigError, match=r"two files of .* would be written as a\.jsonl"):
        predict_files(model, folder, tmp_path / "out", TableRequest(tasks="topics"))
    (folder / "a.jsonl").rename(folder / "a.2024.json")
    (folder / "a.2024.json").write_text(json.dumps(ROWS[:2]))
    (folder / "state.json").write_text("{}")
    predict_files(model, folder, tmp_path / "out", TableRequest(tasks="topics"))
    assert sorted(os.listdir(tmp_path / "out")) == ["a.2024.jsonl", "a.jsonl"]


def test_a_table_without_rows_keeps_its_columns(model, tmp_path):
    (tmp_path / "in.csv").write_text("id,text\n")
    for ending in (".csv", ".parquet", ".jsonl"):
        counts = predict_files(model, tmp_path / "in.csv", tmp_path / f"out{ending}", TableRequest(tasks="marks"))
        assert counts.rows == 0
    assert (tmp_path / "out.csv").read_text() == "id,text,marks,error\n"
    assert parquet.read_schema(tmp_path / "out.parquet").names == ["id", "text", "marks", "error"]


def test_columns_and_texts_that_come_later(model, tmp_path):
    rows = [*[{"text": "Ada sang."}] * 9, {"question": "who sang?", "context": "Ada sang in Rome."}]
    found = model.predict_table(rows, task_hint="faq")
    assert [row["error"] is None for row in found] == [False] * 9 + [True]
    late = [*[{"text": "x"}] * 9, {"text": "x", "topics": 1}]
    with pytest.raises(ConfigError, match="prefix: the table has a column 'topics' already"):
        model.predict_table(late, tasks="topics")
    bad = [*[3] * 20, {"text": "Ada sang."}]
    found = model.predict_table(bad, tasks="topics")
    assert [row["error"] is None for row in found] == [False] * 20 + [True]


def test_cells_that_are_odd(model, tmp_path):
    rows = [{"text": "one\rtwo", "meta": {"a": 1}, "n": 1.5}, {"text": "half \ud83d", "meta": [], "n": None},
            {"text": "x", "meta": {"a": 1, "b": 2}, "n": 2}]  # fmt: skip
    source = write(tmp_path / "in.jsonl", rows)
    for ending in (".csv", ".jsonl", ".parquet"):
        predict_files(model, source, tmp_path / f"out{ending}", TableRequest(tasks="topics"))
    assert [json.loads(row["meta"]) for row in parquet.read_table(tmp_path / "out.parquet").to_pylist()] == [
        {"a": 1}, [], {"a": 1, "b": 2},
    ]  # fmt: skip
    with (tmp_path / "out.csv").open(newline="") as file:
        assert next(row["text"] for row in csv.DictReader(file)) == "one\rtwo"
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
    huge = write(tmp_path / "huge.jsonl", [{"text": "x", "n": 2**70}])
    with pytest.raises(DataError, match=r"write \.jsonl in place of \.parquet"):
        predict_files(model, huge, tmp_path / "huge.parquet", TableRequest(tasks="topics"))


def test_frames_of_any_kind(model):
    missing = pandas.DataFrame({"text": pandas.array(["Ada sang.", pandas.NA], dtype="string")})
    errors = model.predict_table(missing, tasks="topics")["error"]
    assert (errors.isna().tolist(), errors[1]) == ([True, False], "column 'text' is empty")
    unnamed = model.predict_table(pandas.DataFrame(["Ada sang."]), tasks="topics")
    assert unnamed["error"].isna().all()
    lists = pandas.DataFrame({"text": ["Who?"], "choices": [numpy.array(["Ada", "Tom"], dtype=object)]})
    assert model.predict_table(lists, tasks="quiz")["error"].isna().all()
    hints = pandas.DataFrame({"text": ["Ada sang."], "task_hint": ["marks"], "choices": ["x"]})
    assert model.predict_table(hints, tasks="topics")["error"].isna().all()
    assert model.predict_table(hints[["text", "task_hint"]])["task"].tolist() == ["marks"]


def test_files_that_are_cut_are_one_sentence(model, tmp_path):
    packed = write(tmp_path / "in.jsonl.gz", ROWS)
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"in\.jsonl\.gz: cannot be read"):
        predict_files(model, packed, tmp_path / "out.jsonl", TableRequest(tasks="topics"))
    (tmp_path / "in.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a Parquet file"):
        predict_files(model, tmp_path / "in.parquet", tmp_path / "out.parquet", TableRequest(tasks="topics"))


def test_bad_lines_keep_their_place_where_the_next_row_begins_alike(model, tmp_path):
    (tmp_path / "in.csv").write_text("text,n\nmore,1,extra\nmore,2\nmore,3\n")
    predict_files(model, tmp_path / "in.csv", tmp_path / "out.csv", TableRequest(tasks="topics"))
    found = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [row["n"] for row in found] == ["", "2", "3"]
    assert "line 2" in found[0]["error"]


def test_a_model_without_a_router_needs_a_task(model, monkeypatch):
    def refuse():
        raise ConfigError("task_hint: this model was trained without a router")

    monkeypatch.setattr(model.predictor, "check_routed", refuse)
    with pytest.raises(ConfigError, match="trained without a router"):
        model.predict_table(ROWS[:1])
    assert model.predict_table(ROWS[:1], tasks="topics")[0]["error"] is None
