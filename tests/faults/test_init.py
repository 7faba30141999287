"""``dynamo init``: values decide what a table is for; what they leave open is asked, and nothing is taken by half."""

import csv
import json

import pytest

from dynamo_mtl.cli import main
from dynamo_mtl.config import load_config
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.setup.data_check import check_data, refuse_faults
from dynamo_mtl.setup.guess import guess_task
from dynamo_mtl.setup.init import guess_tasks, starter_config
from dynamo_mtl.tasks.registry import make_tasks
from dynamo_mtl.tasks.tables import TRAIN, all_examples, open_task_table


def _csv(folder, name, header, rows):
    path = folder / name
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def _jsonl(folder, name, rows):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


TEXTS = [f"the lift in house {n} is out of order again" for n in range(24)]


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        # a name of another type's column holds labels
        (["text", "target"], lambda n, t: (t, n % 2), ("classification", {"columns": {"label": "target"}})),
        (["description", "code"], lambda n, t: (t, "AB"[n % 2] + "7"),
         ("classification", {"columns": {"text": "description", "label": "code"}})),
        (["document", "summary"], lambda n, t: (t, ["short", "long"][n % 2]),
         ("classification", {"columns": {"text": "document", "label": "summary"}})),
        # what is longest, or first, is not the text
        (["label", "page", "text"], lambda n, t: (n % 2, f"https://a.example/{'x' * 99}/{n}", t),
         ("classification", {})),
        (["when", "nr", "text", "label"], lambda n, t: (f"2024-01-{n + 1:02d}", n, t, n % 3), ("classification", {})),
        # code is told by what it is
        (["what", "how"], lambda n, t: (t, f"lifts[{n}].stop()"),
         ("code_generation", {"columns": {"description": "what", "code": "how"}})),
        # answers stand in their passage
        (["ask", "passage text", "reply"], lambda n, t: (f"Which house is it, {n}?", t, f"house {n}"),
         ("qa", {"columns": {"question": "ask", "context": "passage text", "answers": "reply"}})),
        (["en", "de"], lambda n, t: (t, f"Der Aufzug in Haus {n} ist wieder defekt"),
         ("translation", {"target_code": "de", "target_language": "German"})),
        (["claim", "reason", "label"], lambda n, t: (t, f"because of lift {n} there", n % 2),
         ("classification", {"columns": {"text": "claim", "text_pair": "reason"}, "text_pair": True})),
        (["text", "choice1", "choice2", "label"], lambda n, t: (t, f"call house {n}", f"walk up {n}", n % 2),
         ("multiple_choice", {})),
        # several labels, in a cell or in columns of their own; scores
        (["text", "topics"], lambda n, t: (t, ["lift", "lift;door", "door;light", "light"][n % 4]),
         ("multi_label", {})),
        (["text", "lift", "door", "light"], lambda n, t: (t, n % 2, n // 2 % 2, n // 4 % 2), ("multi_label", {})),
        (["text", "score"], lambda n, t: (t, n / 7), ("regression", {"score_range": [0, 4]})),
        (["one text", "other text", "closeness"], lambda n, t: (t, f"house {n} has no lift that works", n / 7),
         ("regression", {"columns": {"text": "one text", "text_pair": "other text", "score": "closeness"},
                         "score_range": [0, 4], "text_pair": True})),
    ],
)  # fmt: skip
def test_values_decide(tmp_path, header, row, expected):
    guess = guess_task(_csv(tmp_path, "t.csv", header, [row(n, text) for n, text in enumerate(TEXTS)]))
    settings = {key: value for key, value in guess.settings.items() if key != "labels"}
    assert (guess.type, settings) == expected


@pytest.mark.parametrize(
    ("header", "row", "question"),
    [
        (["text", "mood", "shop"], lambda n, t: (t, "ab"[n % 2], "xyz"[n % 3]),
         r"which column is the label, mood \(a, b\) or shop"),
        (["text", "score", "rating"], lambda n, t: (t, n / 7, n / 9), "which column is the score, 'score' or 'rating'"),
        (["one", "other"], lambda n, t: (t, f"house {n} has no lift that works"), "is one the translation"),
    ],
)  # fmt: skip
def test_what_values_leave_open_is_asked(tmp_path, header, row, question):
    with pytest.raises(ConfigError, match=question):
        guess_task(_csv(tmp_path, "t.csv", header, [row(n, text) for n, text in enumerate(TEXTS)]))


def test_a_question_is_answered_by_an_option(tmp_path):
    path = _csv(
        tmp_path,
        "t.csv",
        ["claim", "reason", "label"],
        [(t, f"because of lift {n}", n % 2) for n, t in enumerate(TEXTS)],
    )
    guess = guess_tasks([path], ["t.text=claim"])[0]
    assert guess.settings["columns"] == {"text": "claim"}
    with pytest.raises(ConfigError, match=r"--column: .* has no column 'claims' for text"):
        guess_tasks([path], ["t.text=claims"])


def test_spellings_of_a_label_are_one_and_empty_ones_are_counted(tmp_path, monkeypatch, capsys):
    values = ["good", "Good", "good ", "bad", "", "BAD"]
    path = _csv(tmp_path, "t.csv", ["text", "label"], [(f"{t} {n}", values[n % 6]) for n, t in enumerate(TEXTS * 2)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["init", str(path)])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "one label in several spellings: 'good' and 'Good'" in said
    assert "8 rows have no label and are left out (data.bad_rows: skip)" in said
    config = load_config(tmp_path / "config.yaml", [f"data.cache_dir={tmp_path / 'cache'}"])
    assert config.tasks["t"].labels == ["bad", "good"]
    task = make_tasks(config.tasks)["t"]
    rows = [e for split in (TRAIN, "validation") for e in all_examples(open_task_table(task, split, config.data, 0))]
    assert (len(rows), sum(row.target == "1" for row in rows)) == (40, 24)
    profile = check_data(config, 10)
    assert sum(s.reading_notes.get("label 'Good' is read as 'good'", 0) for s in profile["t"].values()) == 8


@pytest.mark.parametrize(
    ("value", "label"), [("1.0", "1"), (1.0, "1"), (" yes", "yes"), ("YES", "yes"), (True, "True")]
)
def test_labels_are_read_as_people_write_them(value, label):
    from dynamo_mtl.tasks.classification import Classification

    task = Classification("t", Classification.Config(type="t", labels=["no", "yes", "1", "True"]))
    assert task.config.labels[int(task.read({"text": "a", "label": value}, "f, line 1").target)] == label


def test_a_label_of_which_two_differ_by_case_is_not_guessed():
    from dynamo_mtl.errors import DataError
    from dynamo_mtl.tasks.classification import Classification

    task = Classification("t", Classification.Config(type="t", labels=["us", "US"]))
    assert task.read({"text": "a", "label": "US"}, "here").target == "1"
    with pytest.raises(DataError, match="out of range"):
        task.read({"text": "a", "label": "Us"}, "here")


def test_labels_are_given_once():
    from dynamo_mtl.config.validation import validate
    from dynamo_mtl.tasks.classification import ClassificationConfig

    with pytest.raises(ConfigError, match="'a' is there twice"):
        validate(ClassificationConfig, {"type": "t", "labels": ["a", "b", "a "]}, "c.yaml")


def test_ordinary_tables_are_taken(tmp_path):
    """Many labels, few rows, rows in the order of their labels, a label that comes late."""
    many = _csv(
        tmp_path,
        "many.csv",
        ["text", "intent"],
        [(f"I want {n}, please {n % 77}", f"intent {n % 77}") for n in range(400)],
    )
    assert len(guess_task(many).settings["labels"]) == 77
    few = _csv(tmp_path, "few.csv", ["text", "label"], [(f"only a few {n}", "abc"[n // 4]) for n in range(12)])
    assert guess_task(few).settings["labels"] == ["a", "b", "c"]
    late = [(f"row number {n}", "common") for n in range(6000)] + [(f"row {n} of late", "rare") for n in range(20)]
    late += [(f"the last {n} rows", "last") for n in range(5)]
    assert guess_task(_csv(tmp_path, "late.csv", ["text", "label"], late)).settings["labels"] == [
        "common",
        "last",
        "rare",
    ]


@pytest.mark.parametrize("files", [["train"], ["train", "test"], ["Train", "Valid"]])
def test_a_folder_of_splits(tmp_path, files):
    folder = tmp_path / "requests"
    folder.mkdir()
    for name in files:
        _csv(folder, f"{name}.csv", ["text", "label"], [(f"{name}: {t}", "ab"[n % 2]) for n, t in enumerate(TEXTS)])
    guess = guess_task(folder)
    assert (guess.type, guess.held_out) == ("classification", "Valid" not in files)
    (tmp_path / "c.yaml").write_text(starter_config([guess], "minilm"))
    config = load_config(tmp_path / "c.yaml", [f"data.cache_dir={tmp_path / 'cache'}"])
    task = make_tasks(config.tasks)["requests"]
    train, held_out = (list(all_examples(open_task_table(task, s, config.data, 0))) for s in (TRAIN, "validation"))
    assert (len(train), len(held_out)) == ((24, 24) if "Valid" in files else (17, 7))
    refuse_faults(check_data(config, 10), "refuse")


def test_entities_are_taken_by_their_spans_or_tags(tmp_path):
    spans = [{"text": f"Ada lives in Ulm {n}", "found": [{"start": 0, "end": 3, "label": "WHO"}]} for n in range(9)]
    assert guess_task(_jsonl(tmp_path, "a.jsonl", spans)).settings == {
        "columns": {"entities": "found"},
        "kinds": ["WHO"],
    }
    tags = [{"words": ["Ada", "lives"], "marks": ["B-WHO", "O"]} for _ in range(9)]
    assert guess_task(_jsonl(tmp_path, "b.jsonl", tags)).settings == {"columns": {"tags": "marks"}, "kinds": ["WHO"]}


def test_a_file_without_names_of_columns_is_named_so(tmp_path):
    (tmp_path / "t.csv").write_text("a good one,1\na bad one,0\nfine by me,1\n" * 4)
    with pytest.raises(ConfigError, match=r"its first line seems to be a row.*tasks\.NAME\.reading\.header"):
        guess_task(tmp_path / "t.csv")


def test_a_folder_called_like_the_built_in_corpus_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample").mkdir()
    _csv(tmp_path / "sample", "train.csv", ["text", "label"], [(t, "ab"[n % 2]) for n, t in enumerate(TEXTS)])
    from pathlib import Path

    text = starter_config(guess_tasks([Path("sample")]), "minilm")
    assert "sample_data_path: ./sample" in text


def test_rows_that_training_leaves_out_do_not_fail_the_check(tmp_path, capsys):
    """Of a table with rows without a label, whose starter configuration says ``bad_rows: skip``.

    Fails if ``data check`` or ``doctor`` refuses what ``train`` only skips.
    """
    rows = [[text, "" if n % 9 == 0 else "AB"[n % 2]] for n, text in enumerate(TEXTS)]
    path = _csv(tmp_path, "mine.csv", ["text", "topic"], rows)
    config = tmp_path / "config.yaml"
    config.write_text(starter_config(guess_tasks([path]), "minilm"))
    assert load_config(config).data.bad_rows == "skip"
    for command in (["data", "check"], ["doctor"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, str(config)])
        assert stop.value.code == 0, capsys.readouterr()


def test_lists_are_no_code_and_a_target_that_many_texts_share_is_the_second_text(tmp_path):
    """Python reads a list as a program, and few different values look like labels. Fails if either is believed."""
    lists = _jsonl(tmp_path, "a.jsonl", [{"text": t, "labels": [["lift"], ["door", "lift"], []][n % 3]}
                                         for n, t in enumerate(TEXTS)])  # fmt: skip
    assert guess_task(lists).type == "multi_label"
    options = _jsonl(tmp_path, "b.jsonl", [{"question": t, "choices": ["up", "down", "out"], "answer": n % 3}
                                           for n, t in enumerate(TEXTS)])  # fmt: skip
    assert guess_task(options).type == "multiple_choice"
    rows = [(t, ["lifts", "stairs"][n // 2 % 2], ["for", "against"][n % 2]) for n, t in enumerate(TEXTS)]
    stance = guess_task(_csv(tmp_path, "c.csv", ["text_a", "text_b", "label"], rows))
    assert (stance.type, stance.settings["text_pair"], stance.settings["labels"]) == (
        "classification", True, ["against", "for"],
    )  # fmt: skip
    words = [{"tokens": t.split(), "tags": ["D", "N", "N", "N", "P", "P", "P", "P", "P", "P"][: len(t.split())]}
             for t in TEXTS]  # fmt: skip
    assert guess_task(_jsonl(tmp_path, "d.jsonl", words)).settings["tags"] == ["D", "N", "P"]
    spans = [{"text": ["the lift"] * (n % 2), "answer_start": [0] * (n % 2)} for n in range(len(TEXTS))]
    asked = [{"question": f"Which {n}?", "context": t, "answers": spans[n]} for n, t in enumerate(TEXTS)]
    found = guess_task(_jsonl(tmp_path, "e.jsonl", asked))
    assert (found.type, found.settings["no_answer"]) == ("qa", True)
