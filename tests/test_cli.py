"""The command line: what works, and one sentence with exit code 2 for what cannot."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import TASKS

from dynamo_mtl.checkpoint.metadata import read_metadata
from dynamo_mtl.cli import main
from dynamo_mtl.config import load_config
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.tasks.registry import task_types

ROOT = Path(__file__).parent.parent


def _fails(arguments, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_help_loads_no_torch():
    code = "import sys; from dynamo_mtl.cli import main\ntry:\n main(['--help'])\nexcept SystemExit: pass\n"
    code += (
        "bad = {'torch', 'transformers', 'datasets', 'pydantic'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("train", "evaluate", "report", "predict"):
        assert verb in done.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_settings):
    """A model trained by the command line."""
    from dynamo_mtl.strict_yaml import dump_yaml

    folder = tmp_path_factory.mktemp("cli")
    settings = {**tiny_settings, "log_dir": str(folder / "logs"), "checkpoint_dir": str(folder / "checkpoints")}
    (folder / "config.yaml").write_text(dump_yaml(settings))
    with pytest.raises(SystemExit) as stop:
        main(["train", str(folder / "config.yaml"), "training.max_steps=2"])
    assert stop.value.code == 0
    return folder / "checkpoints" / "final_model"


def test_evaluate_writes_the_result_file(model, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(model), "--output", str(tmp_path / "r.json"), "--pictures", str(tmp_path / "pictures")])
    assert stop.value.code == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["format"] == 1
    assert set(result["systems"]) == {"dynamo", "oracle", "single_task", "trivial"}
    keys = {
        "sentiment": {"accuracy", "precision", "recall", "f1"},
        "qa": {"exact_match", "f1", "start_accuracy", "end_accuracy"},
        "summarization": {"rouge1", "rouge2", "rougeL", "bleu", "exact_match"},
        "code_generation": {"rouge1", "rouge2", "rougeL", "bleu", "sentence_bleu", "exact_match", "parses"},
        "translation": {"rouge1", "rouge2", "rougeL", "bleu", "exact_match", "chrf"},
    }
    for task, names in keys.items():
        assert names <= result["systems"]["dynamo"][task].keys()
        assert result["systems"]["dynamo"][task]["n"] == 12
    routing = {"accuracy", "macro", "worst_task", "entropy", "load_balance", "ece", "ece_bins", "brier", "aurc", "n"}
    routing |= {"confidence", "rejected", "kept_accuracy"}
    for kind in ("bare", "instructed", "crossed", "length_only"):
        assert set(result["routing"][kind]) == routing
    assert sum(map(sum, result["routing"]["confusion"])) == result["routing"]["bare"]["n"] == 60
    assert (tmp_path / "pictures" / "routing_confusion.png").stat().st_size > 5000
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("Tasks", "Routing", "conflicting"))


def test_predict_prints_one_json_object(model, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(model), "A fine film.", "--task-hint", "sentiment", "--json"])
    assert stop.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["sentiment"]["label"] in ("positive", "negative")
    assert set(result["routing_info"]["probabilities"]) == set(TASKS)


@pytest.mark.parametrize("text", ["", "</s><pad><mask>", "nul\x00", "\u202eabc", "😀" * 50, "x" * 100_000])
def test_predict_survives_any_text(model, text, capsys):
    for extra in ([], ["--context", text], ["--task-hint", "qa", "--context", "a b c"]):
        with pytest.raises(SystemExit) as stop:
            main(["predict", str(model), text, "--json", *extra])
        assert stop.value.code == 0
        json.loads(capsys.readouterr().out)


def test_lone_surrogates_are_answered(model):
    from dynamo_mtl.inference.api import DynamoInference

    result = DynamoInference(model).predict("\ud800 bad \udfff", context="a \ud800 b", task_hint="qa")
    assert set(result["qa"]) == {"answer", "score", "start", "end"}


def test_an_unknown_task_hint_is_suggested(model, capsys):
    error = _fails(["predict", str(model), "x", "--task-hint", "sentimnt"], capsys)
    assert "did you mean 'sentiment'?" in error


def test_evaluate_refuses_misspelt_settings(model, capsys):
    assert "did you mean 'data'?" in _fails(["evaluate", str(model), "dta.root=x"], capsys)
    assert "did you mean 'sentiment'?" in _fails(["evaluate", str(model), "data.sentimnt_data_path=x"], capsys)
    assert "'oracel' is no system; use dynamo, oracle" in _fails(
        ["evaluate", str(model), "--systems", "oracel"], capsys
    )


def test_evaluate_needs_no_training_data_for_a_named_file(model, tmp_path, capsys):
    """A folder with an evaluation file only: all but the length-only router is scored."""
    (tmp_path / "reviews").mkdir()
    rows = [{"text": f"Film number {n} was fine.", "label": n % 2} for n in range(6)]
    (tmp_path / "reviews" / "validation.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    output = tmp_path / "r.json"
    arguments = ["evaluate", str(model), f"data.sentiment_data_path={tmp_path / 'reviews'}", "--systems", "oracle"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--output", str(output), "--pictures", str(tmp_path)])
    assert stop.value.code == 0
    result = json.loads(output.read_text())
    assert result["systems"]["oracle"]["sentiment"]["n"] == 6
    assert "length_only" not in result["routing"]
    capsys.readouterr()


def test_an_unwritable_place_is_said_before_the_work(model, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "--output" in _fails(["evaluate", str(model), "--output", str(tmp_path / "file" / "r.json")], capsys)
    error = _fails(["evaluate", str(model), "--output", str(tmp_path), "--pictures", str(tmp_path)], capsys)
    assert f"--output: {tmp_path} is a folder" in error
    assert "--pictures" in _fails(["evaluate", str(model), "--pictures", str(tmp_path / "file")], capsys)


def test_missing_training_data_is_said_before_the_work(model, tmp_path, capsys):
    """Only the system without learning needs it."""
    (tmp_path / "validation.jsonl").write_text('{"text": "a", "label": 0}\n')
    error = _fails(
        ["evaluate", str(model), f"data.sentiment_data_path={tmp_path}", "--pictures", str(tmp_path)], capsys
    )
    assert "no file for the split 'train'" in error
    assert "dynamo sentiment" not in error  # nothing was predicted before


def test_no_checkpoint_is_said(tmp_path, capsys):
    assert "not a checkpoint" in _fails(["evaluate", str(tmp_path)], capsys)
    assert "not a checkpoint" in _fails(["predict", str(tmp_path), "x"], capsys)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("router.temprature=2", "unknown key 'router.temprature'; did you mean 'temperature'?"),
        ("trainig.batch_size=2", "unknown key 'trainig'; did you mean 'training'?"),
        ("lora_configs.qa.rnak=2", "unknown key 'lora_configs.qa.rnak'; did you mean 'rank'?"),
        ("lora_configs.qaa.rank=2", "lora_configs.qaa: no such task; did you mean 'qa'?"),
        ("data.sentimnt_data_path=x", "did you mean 'sentiment'?"),
        ("tasks.qa.traning=2", "did you mean 'training'?"),
        ("tasks.qa.type=squad", "tasks.qa.type: no task type 'squad'"),
        ("training.batch_size=many", "training.batch_size: input should be a valid integer, found 'many'"),
        ("training.batch_size=true", "training.batch_size: input should be a valid integer, found True"),
        ("training.lora_lr=.nan", "training.lora_lr: input should be a finite number"),
        ("training.batch_size=0", "training.batch_size: input should be greater than or equal to 1, found 0"),
        ("router.top_k=6", "router.top_k: found 6, but there are only 5 tasks"),
        ("model.tap_layer=4", "model.tap_layer: found 4"),
        ("model.hidden_size=768", "model.hidden_size: found 768"),
        ("model.freeze_backbone=false", "model.freeze_backbone: found false with model.adapters: routed"),
        ("model.base_model_name=nobody/none", "three ways to get a backbone"),
        ("model.base_model_name=./none", "is not a folder"),
        ("data.max_source_length=240", "source and target need 240 + 41 positions"),
        ("data.max_source_length=300", "has 256 positions"),
        ("data.window_overlap=60", "data.window_overlap: found 60, at most half"),
        ("data.qa_data_path=./nowhere", "nowhere: no such file or folder"),
        ("training.term_weights={own: 1.0}", "no such term is registered"),
        ("nonsense", "'nonsense': expected key.sub=value"),
        ("tasks=3", "tasks: input should be a valid dictionary, found 3"),
        ("tasks.qa=3", "tasks.qa: expected keys and values, found 3"),
        ("lora_configs.qa=3", "lora_configs.qa: expected keys and values, found 3"),
        ("lora_configs=[1]", "lora_configs: expected keys and values, found [1]"),
        ("data=[1]", "data: input should be a valid dictionary"),
        ("tasks.qa.type=[qa]", "tasks.qa.type: expected the name of a task type"),
        ("tasks.translation.target_vocabulary=-5", "greater than or equal to 258"),
        ("data.paths=3", "data.paths: input should be a valid dictionary"),
        ("training.term_weights={routing: -1}", "greater than or equal to 0"),
        ("training={routing_weight: 0, task_weight: 0}", "nothing would train the router"),
        ("training=3", "training: input should be a valid dictionary"),
        ("router={3: 4}", "a key should be text"),
        ("log_dir.x=1", "is a value, not a section"),
        ("tasks.sentiment.columns={txt: body}", "tasks.sentiment.columns: no column 'txt'; did you mean 'text'?"),
        ("training.term_weights={routing: 1}", "training.term_weights.routing: use training.routing_weight"),
        ("data.cache_dir=/dev/null/cache", "data.cache_dir: /dev/null/cache cannot be written"),
        ("router.top_k=!!int x", "invalid literal"),
        ("lora_configs.qa.target_modules=all", "lora_configs.qa.target_modules"),
    ],
)
def test_a_bad_configuration_is_one_sentence_before_training(tiny_config_file, tmp_path, override, message, capsys):
    error = _fails(["train", str(tiny_config_file), override], capsys)
    assert message in " ".join(error.split())
    assert not (tmp_path / "checkpoints").exists()


NOT_IN_CONTEXT = {"context": "abc", "question": "q", "answers": {"text": ["zzz"], "answer_start": [0]}}


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("sentiment", '{"text": "a", "label": 0}\n{broken\n', "train.jsonl, line 2: not valid JSON"),
        ("sentiment", "", "the split 'train' is empty"),
        ("qa", json.dumps(NOT_IN_CONTEXT), "the answer 'zzz'"),
    ],
)
def test_bad_data_is_one_sentence_before_training(tiny_config_file, tmp_path, task, content, message, capsys):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text(content)
    error = _fails(["train", str(tiny_config_file), f"data.{task}_data_path={tmp_path / 'rows'}"], capsys)
    assert message in " ".join(error.split())
    assert not (tmp_path / "checkpoints").exists()


def test_a_wrong_phase_or_config_file_is_said(tiny_config_file, capsys):
    assert "use 1, 2, 3 or all" in _fails(["train", str(tiny_config_file), "--phase", "4"], capsys)
    assert "cannot be read" in _fails(["train", "nowhere.yaml"], capsys)
    assert "phase 3 starts from phase 2" in _fails(["train", str(tiny_config_file), "--phase", "3"], capsys)


@pytest.mark.parametrize("path", sorted([*ROOT.glob("configs/*.yaml"), ROOT / "config.yaml"]), ids=lambda p: p.name)
def test_every_shipped_config_is_valid(path):
    config = load_config(path)
    assert {task.type for task in config.tasks.values()} <= set(task_types())
    assert len(config.tasks) >= 3


def _invented(task, number):
    """A row for a task of ``configs/labels.yaml``, from its settings."""
    text = f"the bus number {number} is late"
    if task.type == "qa":
        return {"question": "what?", "context": text, "answers": {"text": ["bus"], "answer_start": [4]}}
    if task.type == "multiple_choice":
        return {"question": text, "choices": ["a bus", "a tram"], "answer": number % 2}
    if task.type == "token_classification":
        tags = task.tags or ["O", f"B-{task.kinds[0]}"]
        return {"tokens": text.split(), "tags": [tags[n % len(tags)] for n in range(6)]}
    texts = {"text_a": text, "text_b": "it is late"} if task.text_pair else {"text": text}
    if task.type == "regression":
        return {**texts, "score": task.score_range[number % 2]}
    labels = task.labels[number % len(task.labels)]
    return {**texts, "labels": [labels]} if task.type == "multi_label" else {**texts, "label": labels}


def test_the_config_of_all_labels_trains_on_invented_rows(tiny_roberta, tmp_path, cache_dir):
    """A step of each adapter of ``configs/labels.yaml``. Fails if its settings do not go together."""
    path = ROOT / "configs" / "labels.yaml"
    config = load_config(path)
    for name, task in config.tasks.items():
        for split, count in (("train", 8), ("validation", 4)):
            place = tmp_path / "data" / name / f"{split}.jsonl.gz"
            place.parent.mkdir(parents=True, exist_ok=True)
            with gzip.open(place, "wt", encoding="utf-8") as file:
                file.writelines(json.dumps(_invented(task, number)) + "\n" for number in range(count))
    small = {
        **{f"tasks.{name}.training.max_steps": 1 for name in config.tasks},
        "data.root": tmp_path / "data", "data.cache_dir": cache_dir, "data.max_source_length": 96,
        "data.window_overlap": 16,
        "model.base_model_name": tiny_roberta, "model.hidden_size": 32, "model.tap_layer": 1, "model.precision": "fp32",
        "log_dir": tmp_path / "logs", "checkpoint_dir": tmp_path / "checkpoints",
    }  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main(["train", str(path), "--phase", "1", *(f"{key}={value}" for key, value in small.items())])
    assert end.value.code == 0
    assert len(read_metadata(tmp_path / "checkpoints" / "phase_1").tasks) == 24


SHIPPED = sorted(path for path in ROOT.glob("configs/*.yaml") if path.stem != "labels")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_config_trains(path, tiny_roberta, tmp_path, cache_dir):
    """A step of each phase over a tiny backbone, on the sample corpus. Fails if settings do not go together."""
    config = load_config(path)
    place = "data.paths.{}" if "  paths:" in path.read_text(encoding="utf-8") else "data.{}_data_path"
    own = [name for name, task in config.tasks.items() if "target_vocabulary" in task.model_fields_set]
    small = {
        **{place.format(name): "sample" for name in config.tasks},
        **{f"tasks.{name}.training.max_steps": 1 for name in config.tasks},
        **{f"tasks.{name}.train_examples": 60 for name in config.tasks},
        **{f"tasks.{name}.target_vocabulary": 300 for name in own},
        **{f"tasks.{n}.validation_examples": 4 for n in config.tasks},
        "data.cache_dir": cache_dir, "data.max_source_length": 96, "data.window_overlap": 16,
        "data.max_windows": 2,
        "model.base_model_name": tiny_roberta, "model.hidden_size": 32, "model.tap_layer": 1,
        "model.precision": "fp32",
        "training.router.examples_per_task": 8, "training.router.mixture_steps": 1, "training.eval_examples": 2,
        "training.joint.max_steps": 1, "training.joint.examples_per_task": 4,
        "log_dir": tmp_path / "logs", "checkpoint_dir": tmp_path / "checkpoints",
    }  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main(["train", str(path), *(f"{key}={value}" for key, value in small.items())])
    assert end.value.code == 0
    trained = load_config(tmp_path / "checkpoints" / "final_model" / "config.yaml")
    assert list(trained.tasks) == list(config.tasks)
    assert trained.lora_configs == config.lora_configs


def test_the_first_interface_works_as_written(tiny_roberta, tmp_path, cache_dir, monkeypatch):
    """The thin entry points with the shipped config.yaml, over a tiny backbone."""
    small = [
        f"model.base_model_name={tiny_roberta}", "model.hidden_size=32", "training.max_steps=2",
        "data.max_source_length=96", "data.window_overlap=16", "training.eval_examples=4",
        "training.router.examples_per_task=10",
        "training.router.mixture_steps=1", "training.joint.max_steps=1", "training.joint.examples_per_task=8",
        f"data.cache_dir={cache_dir}", f"log_dir={tmp_path}/logs", f"checkpoint_dir={tmp_path}/checkpoints",
        "model.precision=fp32", *[f"tasks.{t}.train_examples=40" for t in TASKS],
        *[f"tasks.{t}.max_target_length=20" for t in TASKS[2:]],
        *[f"tasks.{t}.generation.max_new_tokens=6" for t in TASKS[2:]],
    ]  # fmt: skip
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(ROOT / "config.yaml"), "--phase", "all", *small]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    checkpoint = tmp_path / "checkpoints" / "final_model"
    command = [sys.executable, str(ROOT / "example_usage.py"), str(checkpoint), str(checkpoint / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "I love this movie! ->" in done.stdout
    assert (tmp_path / "visualizations" / "routing_confusion.png").exists()


def test_yaml_reads_numbers_as_people_write_them(tmp_path):
    from dynamo_mtl.strict_yaml import parse_yaml, read_settings

    text = "a: 3e-4\nb: 010\nc: on\nd: 1_0\ne: .5\nf: true\ng: ~\nh: -2\ni: 1.\n"
    assert parse_yaml(text, "x") == {
        "a": 3e-4, "b": 10, "c": "on", "d": 10, "e": 0.5, "f": True, "g": None, "h": -2, "i": 1.0,
    }  # fmt: skip
    for bad, message in (
        ("a: 1\na: 2\n", "line 2.*duplicate"),
        ("a: &x 1\nb: *x\n", "aliases"),
        ("a:\n\t- 1", "line 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_yaml(bad, "x.yaml")
    (tmp_path / "c.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected keys and values, found list"):
        read_settings(tmp_path / "c.yaml")
