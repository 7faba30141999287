"""Without any extra, every command works or names the extra to install; and the wheel holds what the package reads."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from tiny import save_system
from typer.main import get_command

from dynamo_mtl.cli import app

ROOT = Path(__file__).parent.parent
WITHOUT = """
import json, sys
from importlib.machinery import PathFinder

MISSING = set(json.loads(sys.argv[1]))
real = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, path=None, target=None: None if name.split(".")[0] in MISSING else real(name, path, target)
)
from dynamo_mtl.cli import main
import contextlib, io, dynamo_mtl
print("from", dynamo_mtl.__file__)
for arguments in json.loads(sys.argv[2]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(arguments)
        except SystemExit as stop:
            code = stop.code or 0
    print(json.dumps([arguments[0], code, said.getvalue()]))
"""
MISSING = [
    "fastapi", "uvicorn", "starlette", "prometheus_client", "ray", "optuna", "onnx", "onnxscript", "onnxruntime",
    "torchao", "wandb", "tensorboard", "mlflow", "trackio", "peft", "playwright", "mkdocs", "hypothesis", "pytest",
    "torchmetrics", "mcp", "mcp_types", "openai", "jevbench",
]  # fmt: skip


@pytest.fixture
def checkpoint(system, session_config, tmp_path):
    return save_system(system, tmp_path / "model")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that users install."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (found,) = folder.glob("dynamo_mtl-*.whl")
    return found


def _all_commands():
    for name, command in get_command(app).commands.items():
        yield from (f"{name} {inner}" for inner in command.commands) if hasattr(command, "commands") else (name,)


def test_without_extras_commands_work_or_name_the_extra(wheel, checkpoint, tiny_config_file, tmp_path):
    """Of the wheel's files. Fails if a command needs a package that no dependency brings, or shows a traceback."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    model, out = str(checkpoint), str(tmp_path)
    works = [
        ["predict", model, "I love this movie!"],
        ["train", str(tiny_config_file), "training.max_steps=1", "--phase", "1"],
        ["evaluate", model, "--systems", "oracle", "--pictures", f"{out}/pictures", "--output", f"{out}/result.json"],
        ["report", f"{out}/result.json"],
        ["card", model],
        ["rename-task", model, "--name", "qa", "--to", "questions", "--output", f"{out}/renamed"],
        ["remove-task", model, "--name", "qa", "--output", f"{out}/removed"],
        ["export", model, f"{out}/merged", "--format", "merged", "--task", "qa"],
        ["data", "check", str(tiny_config_file), "--sample", "4"],
        ["doctor", model],
        ["init", f"{out}/mine.csv", "--output", f"{out}/mine.yaml"],
        ["analyze", model, "--limit", "4", "--pictures", f"{out}/analysis"],
        ["import-adapter", model, f"{model}/adapters/qa", "--task", "translation", "--output", f"{out}/imported"],
        ["compare", str(tiny_config_file), "--output", f"{out}/compared.json", "training.max_steps=1",
         f"checkpoint_dir={out}/compare", "compare.systems=[dynamo,oracle]"],
        ["add-task", f"{out}/compare/final_model", "--name", "more", "--type", "sentiment", "--data", "sample",
         "--output", f"{out}/added",
         "tasks.more.train_examples=8", "tasks.more.training.max_steps=1", "training.router.feature_epochs=1"],
        ["adapt-router", f"{out}/compare/final_model", "--task", "translation", "--inputs", f"{out}/lines.txt",
         "--output", f"{out}/adapted"],
    ]  # fmt: skip
    (tmp_path / "lines.txt").write_text("".join(f"parcel number {n}\n" for n in range(10)))
    (tmp_path / "mine.csv").write_text("text,label\n" + "".join(f"text {n},{n % 2}\n" for n in range(20)))
    at_hub = {
        "push": (["push", model, "owner/name"], "the hub took no model"),
        "pull": (["pull", "owner/name", f"{out}/pulled"], "could be fetched from the hub"),
    }
    names = {
        "serve": (["serve", model], "pip install -e '.[serve]'"),
        "mcp": (["mcp", model], "pip install -e '.[mcp]'"),
        "tune": (["tune", str(tiny_config_file)], "pip install -e '.[tune]'"),
        "export": (["export", model, f"{out}/onnx", "--format", "onnx"], "pip install -e '.[export]'"),
        "train": (["train", str(tiny_config_file), "model.quantization=int8"], "pip install -e '.[quantize]'"),
    }
    names |= at_hub  # whose package comes with transformers: what is missing here is the network
    commands = [*works, *(command for command, _ in names.values())]
    called = {" ".join(c[:2]) if c[0] == "data" else c[0] for c in commands}
    assert called == set(_all_commands()), "a command is not tried"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, json.dumps(MISSING), json.dumps(commands)],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"from {tmp_path / 'installed'}" in done.stdout
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(found) == len(commands), done.stderr
    for command, code, said in found[: len(works)]:
        assert code == 0, (command, said)
    for (command, code, said), (_, sentence) in zip(found[len(works) :], names.values(), strict=True):
        assert code == 2, command
        assert sentence in said, said
        assert "Traceback" not in said


def test_the_wheel_holds_what_the_package_reads(wheel):
    """Fails if a page, a template or a file of instructions stays behind."""
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / "dynamo_mtl").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= names
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert all(f"{key} = {value}" in zipfile.ZipFile(wheel).read(entry).decode() for key, value in scripts.items())
