"""Files from strangers are data: whatever they hold, nothing is run, and one sentence says what is wrong."""

import contextlib
import hashlib
import json
import os
import pickle
import struct

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny import save_system, small_system

from dynamo_mtl.cli import main
from dynamo_mtl.config import load_config
from dynamo_mtl.errors import BackboneError, CheckpointError, ConfigError, DynamoError
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.model.backbone import load_backbone
from dynamo_mtl.storage import write_manifest
from dynamo_mtl.strict_yaml import dump_yaml
from dynamo_mtl.system import load_system

CPU = torch.device("cpu")


@pytest.fixture
def saved(system, tmp_path):
    """A checkpoint whose maker can also write a manifest that fits."""
    return save_system(system, tmp_path / "model", seed=3, train_seconds=1.5)


@pytest.fixture
def backbone(tiny_roberta, tmp_path):
    """A copy of the backbone, to be spoilt."""
    copy = tmp_path / "backbone"
    copy.mkdir()
    for path in tiny_roberta.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.mark.promise("C1")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "router.safetensors").write_bytes((f / "router.safetensors").read_bytes()[:-9]), "damaged"),
        (lambda f: _flip(f / "router.safetensors"), r"router\.safetensors: damaged since it was written"),
        (lambda f: (f / "heads" / "qa.safetensors").unlink(), r"heads/qa\.safetensors: missing"),
        (lambda f: (f / "added_tokens.json").write_text("{}"), r"added_tokens\.json: not in manifest\.json"),
        (lambda f: (f / "router.safetensors").write_bytes(b"0" * 10), "10 bytes instead of"),
        (lambda f: (f / "manifest.json").unlink(), r"manifest\.json: cannot be read"),
    ],
)
def test_a_changed_checkpoint_is_refused_naming_the_file(saved, spoil, message):
    """Fails without ``verify_folder`` in ``open_checkpoint``: the flipped byte would be loaded."""
    spoil(saved)
    with pytest.raises(CheckpointError, match=message):
        load_system(saved, CPU)


def _flip(path):
    content = path.read_bytes()
    path.write_bytes(content[:-5] + bytes([content[-5] ^ 4]) + content[-4:])


class _Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.promise("C2")
@pytest.mark.parametrize(
    "name", ["router.safetensors", "heads/qa.safetensors", "adapters/qa/adapter_model.safetensors"]
)
def test_a_pickle_in_a_checkpoint_is_never_run(saved, tmp_path, name):
    """Fails if a file were read with ``torch.load``: the canary would be there."""
    canary = tmp_path / "canary"
    (saved / name).write_bytes(pickle.dumps(_Payload(canary)))
    write_manifest(saved)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_system(saved, CPU)
    assert not canary.exists()
    pickle.loads(pickle.dumps(_Payload(canary)))
    assert canary.exists()  # the payload works


@pytest.mark.promise("C2")
def test_other_formats_are_no_way_in(saved, backbone, tmp_path):
    """Neither a pickle beside the right files nor one in their place, as ``pytorch_model.bin``, is touched."""
    canary = tmp_path / "canary"
    payload = pickle.dumps(_Payload(canary))
    for name in ("optimizer.pt", "adapters/qa/adapter_model.bin"):
        (saved / name).write_bytes(payload)
    write_manifest(saved)
    load_system(saved, CPU)
    (backbone / "model.safetensors").unlink()
    torch.save({"x": _Payload(canary)}, backbone / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="a safetensors file is needed"):
        load_backbone(str(backbone))
    assert not canary.exists()


@pytest.mark.promise("C2")
def test_a_pickle_as_the_state_of_a_run_is_never_run(saved, tmp_path, tiny_config_file, capsys):
    """The slot of the optimizer's moments is safetensors too."""
    canary = tmp_path / "canary"
    state = tmp_path / "checkpoints" / "resume" / "state-000-00000001"
    state.parent.mkdir(parents=True)
    saved.rename(state)
    (state / "loop.safetensors").write_bytes(pickle.dumps(_Payload(canary)))
    (state / "loop.json").write_text(json.dumps({"format": 3}))
    write_manifest(state)
    with pytest.raises(SystemExit) as stop:
        main(["train", str(tiny_config_file), "--resume", "latest"])
    assert stop.value.code == 2
    assert "not the state of a run" in capsys.readouterr().err
    assert not canary.exists()


def _header(path, header):
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * 64)


@pytest.mark.promise("C3")
def test_broken_tensor_files_are_refused(saved):
    """A header of 200 MB, offsets that overlap or lead out of the file, a header that is no JSON."""
    path = saved / "router.safetensors"
    piece = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    makers = [
        lambda: path.write_bytes(struct.pack("<Q", 200_000_000) + b"{}"),
        lambda: _header(path, {"a": piece, "b": {**piece, "data_offsets": [8, 24]}}),
        lambda: _header(path, {"a": {**piece, "data_offsets": [0, 10**12]}}),
        lambda: _header(path, {"a": {**piece, "shape": [2**62, 2**62]}}),
        lambda: path.write_bytes(struct.pack("<Q", 4) + b"nope"),
        lambda: path.write_bytes(b""),
    ]
    for make in makers:
        make()
        write_manifest(saved)
        with pytest.raises(CheckpointError, match=r"router\.safetensors: cannot be read as safetensors"):
            load_system(saved, CPU)


@pytest.mark.promise("C3")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(saved, backbone, value):
    """Fails without the check in ``_read`` and ``_read_weights``."""
    path = saved / "heads" / "sentiment.safetensors"
    tensors = load_file(path)
    tensors["out.bias"][1] = value
    save_file(tensors, path)
    write_manifest(saved)
    with pytest.raises(CheckpointError, match=r"sentiment\.safetensors: out\.bias holds values that are not finite"):
        load_system(saved, CPU)
    weights = load_file(backbone / "model.safetensors")
    name = next(n for n in weights if n.endswith("layer.2.output.dense.weight"))
    weights[name][0, 0] = value
    save_file(weights, backbone / "model.safetensors")
    with pytest.raises(BackboneError, match=r"layer\.2\.output\.dense\.weight holds values that are not finite"):
        load_backbone(str(backbone))


def _adapter(folder, change):
    path = folder / "adapters" / "qa" / "adapter_model.safetensors"
    tensors = change(load_file(path))
    save_file(tensors, path)


FIRST = "base_model.model.encoder.layer.1.attention.self.query.lora_A.weight"


@pytest.mark.promise("C4")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, FIRST: t[FIRST][:3].clone()}, r"should have shape \(6, 32\), found shape \(3"),
        (lambda t: {k.replace("query", "key"): v for k, v in t.items()}, "should have shape .* found nothing"),
        (lambda t: {k: v.half() for k, v in t.items()}, "should be float32, found float16"),
        (lambda t: {**t, "surprise": torch.zeros(1)}, "unexpected tensor surprise"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused(saved, change, message):
    """Fails without the comparison of names, shapes and types in ``load_task``."""
    _adapter(saved, change)
    write_manifest(saved)
    with pytest.raises(CheckpointError, match=message):
        load_system(saved, CPU)


@pytest.mark.promise("C4")
def test_another_base_model_is_refused(saved, backbone):
    """Other weights of the same shape: fails without the hash of the weight file."""
    weights = load_file(backbone / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] + 0.01
    save_file(weights, backbone / "model.safetensors")
    config = saved / "config.yaml"
    text = config.read_text()
    line = next(row for row in text.splitlines() if "base_model_name" in row)
    config.write_text(text.replace(line, f"  base_model_name: {backbone}"))
    write_manifest(saved)
    with pytest.raises(CheckpointError, match="was trained over other backbone weights"):
        load_system(saved, CPU)


CODE = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Model: pass\nclass Tokenizer: pass\n"


@pytest.mark.promise("C5")
def test_configurations_that_name_code_run_none(backbone, tiny_roberta):
    """``auto_map`` is what hub models name their code with; the library runs it where it is trusted."""
    (backbone / "modeling.py").write_text(CODE)
    path = backbone / "config.json"
    auto = {"AutoModel": "modeling.Model", "AutoConfig": "modeling.Model", "AutoTokenizer": "modeling.Tokenizer"}
    more = {"auto_map": auto, "trust_remote_code": True, "_attn_implementation_internal": "evil/kernel", "unknown": [1]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    loaded, clean = load_backbone(str(backbone)), load_backbone(str(tiny_roberta))
    assert all(torch.equal(a, b) for a, b in zip(loaded.encoder.parameters(), clean.encoder.parameters(), strict=True))
    assert not (backbone / "ran").exists()
    path = backbone / "tokenizer_config.json"
    mapping = {"AutoTokenizer": ["modeling.Tokenizer", "modeling.Tokenizer"]}
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": mapping, "tokenizer_class": "Tokenizer"}))
    with contextlib.suppress(BackboneError):  # it may be refused as well
        load_backbone(str(backbone))
    assert not (backbone / "ran").exists()
    assert not (backbone / "__pycache__").exists()


@pytest.mark.promise("C5")
@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['touch {canary}']", "!!python/name:os.system"])
def test_yaml_cannot_name_code(tmp_path, tag):
    """Fails with ``yaml.UnsafeLoader``."""
    canary = tmp_path / "canary"
    (tmp_path / "c.yaml").write_text(f"log_dir: {tag.format(canary=canary)}\n")
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        load_config(tmp_path / "c.yaml")
    assert not canary.exists()


@pytest.mark.promise("C6")
@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a\0b", "n" * 300, "..", "a/b", "a\\b", ""])
def test_names_that_lead_elsewhere_are_refused(saved, name, tiny_settings, tmp_path):
    """Names become files: in a configuration, in ``dynamo.json`` and in a manifest."""
    settings = {**tiny_settings, "tasks": {**tiny_settings["tasks"], name: {"type": "sentiment"}}}
    (tmp_path / "c.yaml").write_text(dump_yaml(settings))
    with pytest.raises(ConfigError, match="should have 1 to 64 letters"):
        load_config(tmp_path / "c.yaml")
    path = saved / "dynamo.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({**metadata, "tasks": [name, *metadata["tasks"][1:]]}))
    write_manifest(saved)
    with pytest.raises(CheckpointError, match="was trained for the tasks"):
        load_system(saved, CPU)
    path.write_text(json.dumps(metadata))
    write_manifest(saved)
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps({**manifest, name: manifest["router.safetensors"]}))
    with pytest.raises(CheckpointError, match="missing"):
        load_system(saved, CPU)


@pytest.mark.promise("C6")
def test_a_link_out_of_the_folder_is_refused(saved, tmp_path):
    """Fails without the check for links: a manifest that fits could vouch for any file of this machine."""
    outside = tmp_path / "outside.safetensors"
    (saved / "router.safetensors").rename(outside)
    (saved / "router.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointError, match="is a link"):
        load_system(saved, CPU)


@pytest.mark.promise("C6")
def test_a_checkpoint_does_not_choose_where_files_are_written(saved, tmp_path, monkeypatch, tables):
    """Its configuration names folders; scoring it writes to the places of the one who scores."""
    config, evil = saved / "config.yaml", tmp_path / "evil"
    settings = yaml.safe_load(config.read_text())
    cache = settings["data"]["cache_dir"]
    settings["data"]["cache_dir"] = settings["visualization_dir"] = settings["log_dir"] = str(evil)
    config.write_text(dump_yaml(settings))
    write_manifest(saved)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(saved), "--systems", "trivial", f"data.cache_dir={cache}"])
    assert stop.value.code == 0
    assert not evil.exists()
    assert (tmp_path / "visualizations" / "routing_confusion.png").exists()


@pytest.mark.promise("C8")
def test_formats_are_read_migrated_or_refused(saved):
    """Fails without the version in ``dynamo.json``: a newer layout would be read as this one."""
    path = saved / "dynamo.json"
    metadata = json.loads(path.read_text())
    assert metadata["format"] == 5
    path.write_text(json.dumps({**metadata, "format": 6}))
    write_manifest(saved)
    with pytest.raises(CheckpointError, match=r"format 6 is newer than this program reads \(5\); update it"):
        load_system(saved, CPU)
    path.write_text(json.dumps({**metadata, "format": 1}))
    (saved / "manifest.json").unlink()  # version 1 had none, and no task copied words
    head = saved / "heads" / "code_generation.safetensors"
    save_file({name: t for name, t in load_file(head).items() if not name.startswith("pointer.")}, head)
    assert load_system(saved, CPU)[1].format == 1


@pytest.mark.promise("D1")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainig: {}\n", "did you mean 'training'?"),
        ("training: {batch_size: many}\n", "valid integer, found 'many'"),
        ("training: {lora_lr: .nan}\n", "finite number"),
        ("log_dir: a\nlog_dir: b\n", 'line 2, column 1: found duplicate key "log_dir"'),
        ("training:\n\tseed: 1\n", "line 2"),
        ("a: " + "[" * 20_000, "nested too deeply"),
        ("a: !!bool maybe\n", "leave the !! tag out"),
        ("a: !!binary x\n", "failed to decode base64"),
        ("a: &a [x]\nb: [*a, *a]\n", "line 2, column 5: aliases are not allowed"),
    ],
)
def test_a_bad_configuration_file_is_one_sentence(tmp_path, text, message):
    """Each fails with the library's own loader: it repeats keys silently, resolves aliases, and overflows the stack."""
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "c.yaml")
    assert message in str(error.value)
    assert str(tmp_path / "c.yaml") in str(error.value)


@pytest.mark.promise("D1")
def test_an_alias_bomb_of_megabytes_ends_at_its_first_alias(tmp_path):
    """Nine levels of ten aliases are a billion values once they are resolved."""
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 10))
    (tmp_path / "bomb.yaml").write_text("l0: &l0 [lol]\n" + levels + "# " + "x" * 10_000_000)
    with pytest.raises(ConfigError, match=r"line 2.*aliases are not allowed"):
        load_config(tmp_path / "bomb.yaml")


@pytest.mark.promise("D1")
def test_numbers_are_what_people_write(tmp_path, tiny_settings):
    """``3e-4`` is text for YAML 1.1."""
    text = dump_yaml({**tiny_settings, "training": {}}).replace("training: {}", "training: {lora_lr: 3e-4}")
    (tmp_path / "c.yaml").write_text(text)
    assert load_config(tmp_path / "c.yaml").training.lora_lr == 3e-4


@pytest.mark.promise("D2")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("router.top_k=6", "only 5 tasks"),
        ("training.batch_size=0", "greater than or equal to 1"),
        ("lora_configs.other.rank=4", "no such task"),
        ("data.window_overlap=60", "at most half"),
        ("training.router.feature_epochs=0", "greater than or equal to 1"),
    ],
)
def test_contradictory_settings_are_refused_before_any_model(tiny_config_file, override, message, monkeypatch):
    """Fails if the check were where the model is built: loading it is made to fail with another error."""
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_, **__: pytest.fail("a model was made"))
    with pytest.raises(ConfigError, match=message):
        load_config(tiny_config_file, [override])


TEXTS = [
    "</s><pad><mask><s>", "[CLS] [SEP] [PAD] [MASK]", "\ud800 lone \udfff", "a\0b", "\u202eabc\u200f", "   \t\n", "",
    "😀" * 20_000, "x" * 200_000, "e\u0301" * 500, "مرحبا 你好 🏳️‍🌈",
]  # fmt: skip


@pytest.fixture(scope="module")
def answering(session_config, tables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("answering") / "model"
    return DynamoInference(save_system(small_system(session_config, tables), folder))


@pytest.mark.promise("D5")
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_any_text_is_answered_and_none_can_inject_a_special_token(answering, text):
    """Fails if special tokens inside a text are read as such, or if a lone surrogate reaches the tokenizer."""
    for task in answering.task_names:
        answer = answering.predict(text, context=text if task == "qa" else None, task_hint=task)[task]
        if task == "qa" and answer["answer"]:
            shown = text.replace("\ud800", "\ufffd").replace("\udfff", "\ufffd")
            assert shown[answer["start"] : answer["end"]] == answer["answer"]
    source = answering.system.source
    frame = {source.tokenizer.first, source.tokenizer.separator}
    windows = source.encode(text).windows
    assert all(not frame & set(window.ids[window.body_start : -1]) for window in windows)


@pytest.mark.promise("D5")
def test_rows_with_such_texts_are_trained_on(tiny_config_file, tmp_path):
    """In the middle of an epoch there is nothing left that could fail."""
    (tmp_path / "rows").mkdir()
    rows = "".join(json.dumps({"text": text, "label": n % 2}) + "\n" for n, text in enumerate(TEXTS))
    for name in ("train", "validation"):
        (tmp_path / "rows" / f"{name}.jsonl").write_text(rows)
    main_arguments = ["train", str(tiny_config_file), f"data.sentiment_data_path={tmp_path / 'rows'}", "--phase", "1"]
    with pytest.raises(SystemExit) as stop:
        main([*main_arguments, "training.max_steps=2", "training.batch_size=11"])
    assert stop.value.code == 0


@pytest.mark.promise("T9")
def test_the_backbone_is_the_same_bytes_after_a_run(tiny_config_file, tmp_path, tiny_roberta, monkeypatch):
    """Fails if the encoder is not frozen: its tensors are hashed at the end of every phase."""
    from dynamo_mtl.training.saved_states import RunStates

    def digest(system):
        return {
            n: hashlib.sha256(p.detach().numpy().tobytes()).hexdigest()
            for n, p in system.model.encoder.named_parameters()
        }

    seen, real = {}, RunStates.save_phase

    def save_phase(self, place, phase):
        seen[phase] = digest(self.system)
        assert not any(p.requires_grad for p in self.system.model.encoder.parameters())
        real(self, place, phase)

    monkeypatch.setattr(RunStates, "save_phase", save_phase)
    with pytest.raises(SystemExit) as stop:
        main(["train", str(tiny_config_file), "training.weight_decay=0.5"])
    assert stop.value.code == 0
    loaded = load_backbone(str(tiny_roberta)).encoder
    before = {n: hashlib.sha256(p.detach().numpy().tobytes()).hexdigest() for n, p in loaded.named_parameters()}
    assert seen == {"phase_1": before, "phase_2": before, "final_model": before}


def test_every_refusal_is_one_kind_of_error():
    assert all(issubclass(kind, DynamoError) for kind in (BackboneError, CheckpointError, ConfigError))
