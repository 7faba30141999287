"""Classification of two texts: how a pair is read, encoded, asked for and recognised."""

import csv

import pytest
from tiny import small_system
from transformers import AutoTokenizer

from dynamo_mtl.config import load_config
from dynamo_mtl.config.system_config import SystemConfig
from dynamo_mtl.config.validation import validate
from dynamo_mtl.errors import ConfigError, DataError, InputError
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.request_reader import RequestReader
from dynamo_mtl.setup.init import guess_tasks, starter_config
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.tasks.registry import make_tasks
from dynamo_mtl.tasks.tables import TRAIN, all_examples, open_task_table
from dynamo_mtl.training.examples import TaskTables
from dynamo_mtl.training.run import train

LABELS = ["no", "yes"]
PREMISES = [f"the {what} of house {n} is closed for repairs" for n in range(12) for what in ("lift", "gate", "hall")]


@pytest.fixture
def settings(tiny_settings, tmp_path):
    """A system of reviews and of pairs, whose rows are files."""
    rows = [
        (f"{text} today", f"{text} {end}", LABELS[k]) for text in PREMISES for k, end in enumerate(("never", "now"))
    ]
    for split, own in ((TRAIN, rows), ("validation", rows[:12])):
        path = tmp_path / "entails" / f"{split}.csv"
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("premise", "hypothesis", "label"), *own])
    pair = {"type": "classification", "labels": LABELS, "text_pair": True, "columns": {"text": "premise"}}
    data = {k: v for k, v in tiny_settings["data"].items() if not k.endswith("_data_path")}
    return {
        **tiny_settings,
        "data": {**data, "sentiment_data_path": "sample", "entails_data_path": str(tmp_path / "entails")},
        "tasks": {"sentiment": tiny_settings["tasks"]["sentiment"], "entails": pair},
        "lora_configs": {"sentiment": {"rank": 4}, "entails": {"rank": 4}},
        "log_dir": str(tmp_path / "logs"), "checkpoint_dir": str(tmp_path / "checkpoints"),
    }  # fmt: skip


@pytest.fixture
def pair_system(settings, tmp_path):
    """The untrained system of the settings."""
    (tmp_path / "config.yaml").write_text(dump_yaml(settings))
    config = load_config(tmp_path / "config.yaml")
    tasks = make_tasks(config.tasks)
    tables = {
        name: TaskTables(*(open_task_table(task, split, config.data, 0) for split in (TRAIN, "validation")))
        for name, task in tasks.items()
    }
    return small_system(config, tables)


def test_a_pair_is_encoded_as_its_tokenizer_does(pair_system, tiny_roberta):
    """Also where the first text is longer than a third of a window. Fails if it is cut though the second is short."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_roberta)
    long = " ".join(["the lift is closed"] * 6)
    for first, second in (("the gate is open", "it is open"), (long, "it is open"), ("a", long)):
        source = pair_system.source.encode(first, second)
        ids = tokenizer(first, second)["input_ids"]
        assert len(ids) <= pair_system.source.max_length
        assert source.windows[0].ids == ids
        assert not source.question_cut


def test_both_texts_decide_the_answer(pair_system):
    """Fails if one of the two is not read."""
    predictor = Predictor(pair_system)
    reader = RequestReader(predictor)

    def score(first, second):
        asked = reader.question({"text": first, "text_pair": second}, "entails", None, {})
        return predictor.answer([asked])[0].answer["score"]

    same = score("the lift is closed", "the lift is open")
    assert score("the lift is closed", "the lift is open") == same
    assert score("the lift is closed", "the gate is shut") != same
    assert score("the hall is closed", "the lift is open") != same


def test_a_pair_needs_its_second_text_under_one_name(pair_system):
    reader = RequestReader(Predictor(pair_system))
    asked = reader.question({"text": "a", "context": "b"}, "entails", None, {})
    assert asked.source.windows == reader.question({"text": "a", "text_pair": "b"}, "entails", None, {}).source.windows
    with pytest.raises(
        InputError, match="'entails' compares two texts, and there is one; give the second as text_pair"
    ):
        reader.question("a", "entails", None, {})
    with pytest.raises(ConfigError, match="both context and text_pair"):
        reader.question({"text": "a", "context": "b", "text_pair": "b"}, "entails", None, {})


def test_a_row_without_its_second_text_is_named():
    system = {
        "data": {"e_data_path": "x"},
        "tasks": {"e": {"type": "classification", "labels": LABELS, "text_pair": True}},
    }
    task = make_tasks(validate(SystemConfig, system, "c").tasks)["e"]
    example = task.read({"text": "a", "sentence2": "b", "label": "yes"}, "f, line 2")
    assert (example.text, example.context, example.target) == ("a", "b", "1")
    with pytest.raises(DataError, match="f, line 3: task 'e' needs a column 'text_pair', found text, label"):
        task.read({"text": "a", "label": "yes"}, "f, line 3")


def test_pairs_and_single_texts_train_in_one_batch(settings, tmp_path):
    """All three phases. Fails if a mixed batch does not take both, or a checkpoint does not answer pairs."""
    (tmp_path / "config.yaml").write_text(dump_yaml(settings))
    train(load_config(tmp_path / "config.yaml"), (1, 2, 3))
    from dynamo_mtl import DynamoInference

    model = DynamoInference(tmp_path / "checkpoints" / "final_model", device="cpu")
    answers = model([{"text": PREMISES[0], "text_pair": f"{PREMISES[0]} now", "task_hint": "entails"}, "a warm film"])
    assert answers[0]["label"] in LABELS
    assert "error" not in answers[1]


def test_a_table_of_pairs_is_recognised_and_asked_about_where_there_are_three(tmp_path):
    """One premise has several hypotheses: fails if its rows lie in the training and the validation data both."""
    path = tmp_path / "nli.csv"
    rows = [(f"{t} {e}", t, label) for t in PREMISES for e, label in (("now", "yes"), ("never", "no"), ("again", "no"))]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("hypothesis", "premise", "label"), *rows])
    (guess,) = guess_tasks([path])
    assert guess.settings["text_pair"]
    assert guess.settings["columns"] == {"text": "premise"}
    assert "--column nli.text=NAME" in guess.notes[0]
    (tmp_path / "config.yaml").write_text(starter_config([guess], "minilm"))
    config = load_config(tmp_path / "config.yaml", [f"data.cache_dir={tmp_path / 'cache'}"])
    task = make_tasks(config.tasks)["nli"]
    split = {s: {e.text for e in all_examples(open_task_table(task, s, config.data, 0))} for s in (TRAIN, "validation")}
    assert split["validation"]
    assert not split[TRAIN] & split["validation"]
    (one,) = guess_tasks([path], ["nli.text=hypothesis"])
    assert "text_pair" not in one.settings
    three = tmp_path / "three.csv"
    with three.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("a", "b", "c", "label"), *((x, y, f"{x} {y}", z) for x, y, z in rows)])
    with pytest.raises(
        ConfigError, match=r"'a' and 'b' and 'c' hold texts beside the label 'label'.*three.text_pair=NAME"
    ):
        guess_tasks([three])
