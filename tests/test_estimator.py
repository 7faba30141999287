"""``Dynamo``: data in memory and in files, and that it is another door to the command line's code."""

import json

import datasets
import numpy as np
import pandas as pd
import pytest

from dynamo_mtl import Classification, Dynamo, MultiLabel, MultipleChoice, QuestionAnswering, Regression, TaskData
from dynamo_mtl.checkpoint.metadata import read_metadata
from dynamo_mtl.cli import main
from dynamo_mtl.errors import CheckpointError, ConfigError, DataError
from dynamo_mtl.storage import MANIFEST
from dynamo_mtl.task_data import stored

WORDS = (("great", 5), ("poor", 1), ("fair", 3))
REVIEWS = [{"review": f"the film number {n} was {word}", "stars": stars} for n in range(20) for word, stars in WORDS]
FAQ = [
    {"question": f"Who sang song {n}?", "context": f"Song {n} is old. {who} sang song {n} in Rome.", "answers": who}
    for n in range(15)
    for who in ("Ada", "Ben", "Clara")
]


@pytest.fixture
def small(tiny_roberta, cache_dir, tmp_path):
    """Settings of a tiny model."""
    return {
        "backbone": str(tiny_roberta),
        "output_dir": tmp_path / "own",
        "data": {"cache_dir": str(cache_dir), "max_source_length": 64, "window_overlap": 16},
        "model": {"tap_layer": 1, "precision": "fp32"},
        "training": {"router": {"examples_per_task": 20, "feature_epochs": 2, "mixture_steps": 0}},
    }


def _tasks(reviews=REVIEWS):
    few = {"training": {"max_steps": 3, "batch_size": 4}}
    return {
        "stars": Classification(reviews, text="review", label="stars", **few),
        "faq": QuestionAnswering(FAQ, **few),
    }


def test_a_model_is_fitted_used_scored_and_saved(small, tmp_path, capsys):
    model = Dynamo(_tasks(), **small)
    with pytest.raises(CheckpointError, match=r"not trained yet; call fit\(\) first"):
        model.predict("x")
    assert model.fit() is model
    answers = model.predict(["Never again.", {"question": "Who sang?", "context": "Ada sang."}])
    assert {answer["task"] for answer in answers} <= {"stars", "faq"}
    (alone,) = model.predict(["Never again."], task_hint="stars")
    assert alone["label"] in ("1", "3", "5")
    assert sum(alone["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    result = model.evaluate()
    assert set(result.systems["dynamo"]) == {"stars", "faq"}
    assert result.confidence["stars"]["n"] > 0
    saved = model.save_pretrained(tmp_path / "saved")
    assert Dynamo.from_pretrained(saved).predict("fine", task_hint="stars") == model.model.predict(
        "fine", task_hint="stars"
    )


def test_the_command_line_trains_the_same_model_to_the_bit(small, tmp_path, capsys):
    """The same files, by their SHA-256. Fails if the class changes a setting on the way."""
    model = Dynamo(_tasks(), **small).fit()
    place = tmp_path / "by_command"
    with pytest.raises(SystemExit) as end:
        main(["train", str(model.config_path), f"checkpoint_dir={place}", f"log_dir={place}"])
    assert end.value.code == 0
    manifests = [json.loads((folder / MANIFEST).read_text()) for folder in (model.checkpoint, place / "final_model")]
    trained = [{name: entry for name, entry in own.items() if name.endswith(".safetensors")} for own in manifests]
    assert len(trained[0]) > 4
    assert trained[0] == trained[1]
    assert read_metadata(model.checkpoint).answers == read_metadata(place / "final_model").answers


@pytest.mark.parametrize(
    "given",
    [
        pd.DataFrame(REVIEWS),
        datasets.Dataset.from_list(REVIEWS),
        REVIEWS,
        (row for row in REVIEWS),
        [{**row, "stars": np.int64(row["stars"])} for row in REVIEWS],
    ],
    ids=["pandas", "datasets", "list", "generator", "numpy"],
)
def test_data_from_memory_is_the_same_in_any_form(given, tmp_path):
    place = stored(given, tmp_path / "a" / "train.jsonl")
    assert [json.loads(line) for line in place.read_text().splitlines()] == REVIEWS


def test_names_of_a_data_sets_labels_are_kept(tmp_path):
    """``ClassLabel`` numbers. Fails if labels become class 0, class 1."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["sad", "glad"])}
    )
    data = datasets.Dataset.from_list([{"text": "a", "label": 1}, {"text": "b", "label": 0}], features=features)
    rows = [json.loads(line) for line in stored(data, tmp_path / "x.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == ["glad", "sad"]


def test_what_the_columns_do_not_say_the_settings_may(small, tmp_path):
    """Soft labels, levels, two columns of 0 and 1; each with other rows to score."""
    soft = [{"text": f"it was so {n}", "probabilities": [n % 4 / 4, 1 - n % 4 / 4]} for n in range(30)]
    stars = [{"review": f"it was so {n}", "stars": n % 5 + 1} for n in range(30)]
    flags = [{"text": f"it was so {n}", "bed": n % 2, "food": n // 2 % 2} for n in range(30)]
    few = {"training": {"max_steps": 1, "batch_size": 4}}
    tasks = {
        "soft": Classification(soft, soft_labels=True, labels=["no", "yes"], **few),
        "stars": Regression(stars, text="review", label="stars", score_range=[1, 5], ordinal=True, **few),
        "flags": MultiLabel(flags, labels=["bed", "food"], **few),
    }
    model = Dynamo(tasks, **small).fit()
    result = model.evaluate({"stars": stars[:7]})
    assert result.systems["oracle"]["stars"]["n"] == 7
    with pytest.raises(ConfigError, match="data: no task 'star'; did you mean 'stars'"):
        model.evaluate({"star": stars})


def test_missing_values_are_null_and_other_values_text(tmp_path):
    frame = pd.DataFrame({"a": [1.5, None], "b": [pd.Timestamp("2024-01-02"), pd.NaT], "c": [np.array([1, 2]), ("x",)]})
    rows = [json.loads(line) for line in stored(frame, tmp_path / "x.jsonl").read_text().splitlines()]
    assert rows == [{"a": 1.5, "b": "2024-01-02 00:00:00", "c": [1, 2]}, {"a": None, "b": None, "c": ["x"]}]


def test_a_path_is_used_where_it_is(tmp_path, small):
    path = tmp_path / "reviews.csv"
    pd.DataFrame(REVIEWS).to_csv(path, index=False)
    model = Dynamo({"stars": path}, **small)
    assert model.config.data.paths["stars"] == str(path)
    assert model.config.tasks["stars"].labels == ["1", "3", "5"]
    assert not (model.output_dir / "data").exists()


def test_columns_settings_and_validation_data_are_given(small):
    pairs = [{"one": f"a cat {n} sat there", "two": f"a dog {n} ran off", "close": n % 5 / 2} for n in range(40)]
    quiz = [{"ask": f"which is number {n}?", "of": ["a", "b", "c"], "right": n % 3} for n in range(30)]
    tags = [{"text": f"the bed number {n} was fine", "about": ["bed"] if n % 2 else []} for n in range(30)]
    tasks = {
        "stars": Classification(
            REVIEWS, text="review", label="stars", validation=REVIEWS[:6], class_weights="balanced"
        ),
        "close": Regression(pairs, text="one", text_pair="two", label="close", score_range=[0, 4]),
        "quiz": MultipleChoice(quiz, question="ask", choices="of", answer="right"),
        "about": MultiLabel(tags, text="text", label="about", labels=["bed", "food"]),
        "faq": TaskData(FAQ),
    }
    config = Dynamo(tasks, **small).config
    assert {name: task.type for name, task in config.tasks.items()} == {
        "stars": "classification", "close": "regression", "quiz": "multiple_choice", "about": "multi_label",
        "faq": "qa",
    }  # fmt: skip
    stars, close = config.tasks["stars"], config.tasks["close"]
    assert (stars.class_weights, stars.validation_share) == ("balanced", None)
    assert stars.validation_file is not None
    assert (close.text_pair, close.score_range) == (True, [0, 4])
    assert close.columns == {"text": "one", "text_pair": "two", "score": "close"}
    assert config.tasks["about"].labels == ["bed", "food"]


@pytest.mark.parametrize(
    ("tasks", "kind", "sentence"),
    [
        ({}, ConfigError, "tasks: there are none"),
        ({"a": 3}, DataError, "found int"),
        ({"a": []}, DataError, "has no rows"),
        ({"a": "nowhere.csv"}, DataError, "no such file or folder"),
        ({"a": {"train": REVIEWS}}, DataError, "found dict"),
        ({"a": ["x"]}, DataError, "row 1: should be a mapping of column names to values, found str"),
        ({"a": Classification(REVIEWS, text="words", label="stars")}, ConfigError, "has no column 'words' for text"),
        ({"a": QuestionAnswering(REVIEWS)}, ConfigError, "no examples of qa are found"),
        ({"a": Classification(REVIEWS, text="review", label="stars", smothing=1)}, ConfigError, "smothing"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(tasks, kind, sentence, small):
    with pytest.raises(kind, match=sentence):
        Dynamo(tasks, **small)
