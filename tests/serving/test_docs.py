"""What docs/serving.md says of the server."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import yaml
from clients import KEY
from typer.testing import CliRunner

from dynamo_mtl.cli import app
from dynamo_mtl.config.serving_config import ServingConfig
from dynamo_mtl.serving.security import KEY_VARIABLE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for page in (PAGE, (ROOT / "README.md").read_text(encoding="utf-8"))
    for line in page.splitlines()
    if line.startswith(("curl ", "dynamo serve ", "pip install 'dynamo"))
]


def test_the_commands_do_what_they_say(serve, checkpoint, monkeypatch):
    _, client = serve()
    seen = []
    monkeypatch.setattr("dynamo_mtl.cli.inference.start_logging", lambda verbose: None)
    monkeypatch.setattr("dynamo_mtl.serving.server.serve", lambda *given: seen.append(given) or 0)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for command in COMMANDS:
        if command[0] == "curl":
            path = command[command.index("-s") + 1].removeprefix("localhost:8000")
            name, value = command[command.index("-H") + 1].split(": ")
            body = command[command.index("-d") + 1]
            answer = client.post(path, content=body, headers={name: value}).json()
            given = json.loads(body)
            if "inputs" in given:
                assert len(answer) == len(given["inputs"]) == 2
            else:
                assert answer["answers"].keys() == given["questions"].keys()
        elif command[0] == "dynamo":
            assert CliRunner().invoke(app, ["serve", str(checkpoint), *command[3:]]).exit_code == 0
        else:
            assert re.search(r"\[(\w+)\]", command[-1])[1] in extras
    assert len(seen) == 2
    assert seen[0][1]().serving.port == ServingConfig().port == 8000


def test_the_page_has_every_route_and_only_settings_that_there_are(serve):
    _, client = serve()
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            assert re.search(rf"`{method.upper()} {path}`", PAGE), path
    named = set(re.findall(r"`(?:serving\.)?(max_\w+|token_budget|num_threads|\w+_seconds)`", PAGE))
    assert named - {"max_new_tokens", "max_ongoing_requests"} <= set(ServingConfig.model_fields)
    assert KEY_VARIABLE in PAGE


def test_the_container_runs_the_command_on_files_that_it_was_given(checkpoint, monkeypatch):
    """Fails if the image starts a command that is not there, lacks a file, or listens elsewhere than compose says."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    command = [
        word
        for line in lines
        if line.startswith(("ENTRYPOINT ", "CMD "))
        for word in json.loads(line.partition(" ")[2])
    ]
    seen = []
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setattr("dynamo_mtl.cli.inference.start_logging", lambda verbose: None)
    monkeypatch.setattr("dynamo_mtl.serving.server.serve", lambda *given: seen.append(given) or 0)
    assert command[:3] == ["dynamo", "serve", "/model"]
    assert CliRunner().invoke(app, ["serve", str(checkpoint), *command[3:]]).exit_code == 0
    config = seen[0][1]().serving
    service = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["dynamo"]
    assert service["ports"] == [f"127.0.0.1:8000:{config.port}"]
    assert service["volumes"][0].endswith(":/model:ro")
    assert KEY_VARIABLE in service["environment"]
    assert float(service["stop_grace_period"].removesuffix("s")) > config.drain_seconds
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert all((ROOT / name).exists() and f"!{name}" in allowed for name in copied)
    assert set(copied) >= {"constraints.txt", "pyproject.toml", "README.md", "src"}
