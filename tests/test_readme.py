"""README and guide: every command runs, every figure comes from a result file."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tables
from reliability import ROWS, find_tests, table_line
from tiny import TASKS

from dynamo_mtl.cli import main
from dynamo_mtl.config.comparison_config import SYSTEMS
from dynamo_mtl.strict_yaml import dump_yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
SERVING = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


COMMANDS = [line for block in _blocks(README, "bash") for line in block.splitlines()]


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda p: p.name)
def test_tables_are_those_of_the_result_files(page):
    """``python benchmarks/tables.py`` fills them. Fails if a figure is typed."""
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text) == text
    assert text.count("<!-- table:") == len(tables.TABLE.findall(text))


def test_the_readme_shows_the_comparisons():
    for file in ("quickstart", "compare-cpu", "minilm-cpu"):
        assert f"<!-- table: results/{file}.json scores -->" in README


def test_make_targets_and_files_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in COMMANDS:
        command, *arguments = shlex.split(line, comments=True)
        if command == "make":
            assert f"\n{arguments[0]}:" in makefile
        if command == "python":
            assert (ROOT / arguments[0]).is_file()  # run by test_cli.py
        if command == "pip" and arguments[1] == "-r":
            assert (ROOT / arguments[-1]).is_file()


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_the_reliability_page_lists_every_test_of_every_row():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    for row, tests in find_tests().items():
        section = page.partition(f"## {row} {ROWS[row]}\n")[2].partition("\n## ")[0]
        lines = [line for line in section.splitlines() if line.startswith("| [")]
        assert tests, row
        assert [line.rpartition(" | ")[0] for line in lines] == [table_line(*test) for test in tests]
        assert all(re.search(r"\| \d+ passed \|$", line) for line in lines)
        assert all(doc for _, _, doc in tests), f"a test of {row} does not say what makes it fail"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_settings):
    """A folder like the repository's root, with a trained quickstart and tiny configurations."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").mkdir()
    for name in ("quickstart", "minilm", "compare", "near_duplicates"):
        settings = {
            **tiny_settings,
            "tasks": {n: {**task, "validation_examples": 4} for n, task in tiny_settings["tasks"].items()},
            "training": {**tiny_settings["training"], "max_steps": 1},
            "compare": {"learning_rates": {}, "timing_inputs": 1, "timing_rounds": 1},
            "log_dir": str(folder / "logs"),
            "checkpoint_dir": str(folder / "runs" / name / "checkpoints"),
        }
        (folder / "configs" / f"{name}.yaml").write_text(dump_yaml(settings))
    with pytest.raises(SystemExit):
        main(["train", str(folder / "configs" / "quickstart.yaml")])
    return folder


def test_dynamo_commands_run_as_written(workplace, monkeypatch):
    """On tiny settings: ``DATA`` is a folder, and the sample corpus stands in for its files."""
    monkeypatch.chdir(workplace)
    (workplace / "DATA" / "qa").mkdir(parents=True)
    lines = [line for line in COMMANDS if re.match(r"(\.venv/bin/)?dynamo (?!serve)", line)]
    assert len(lines) >= 3
    for line in lines:
        arguments = shlex.split(line, comments=True)[1:]
        arguments = [a for a in arguments if not a.startswith("tasks.qa.validation_file")]
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0, line
    assert {path.stem for path in (workplace / "results").iterdir()} >= {"minilm-cpu", "compare-cpu", "quickstart"}
    shutil.rmtree(workplace / "results")


def test_python_blocks_run_as_written(workplace, monkeypatch):
    from dynamo_mtl.training import objective

    monkeypatch.chdir(workplace)
    monkeypatch.setattr(objective, "TERMS", dict(objective.TERMS))
    blocks = [block for page in (README, GUIDE, SERVING) for block in _blocks(page, "python")]
    assert len(blocks) >= 4
    for block in blocks:
        exec(compile(block, "docs", "exec"), {})
    assert "sharpness" in objective.TERMS
    assert (workplace / "visualizations" / "routing_confusion.png").exists()


WALKED = (
    "index",
    "tasks_later",
    "adding_a_task",
    "exchange",
    "tracking",
    "tuning",
    "export",
    "troubleshooting",
    "generated_code",
)
"""Pages whose blocks are run here; README, guide and serving above and below, your_own_data by test_newcomer.py."""
NEEDS = re.compile(r"<!-- needs: (?:hub|gpu|data|docker|ray) -->\n\n```.*?```", flags=re.DOTALL)
BLOCK = re.compile(r"```(bash|python)\n(.*?)```", flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", WALKED)
def test_blocks_of_a_page_run_as_written_in_their_order(page, workplace, monkeypatch, tmp_path):
    """Commands and programs; what needs the hub or a GPU says so above itself. Fails if a page is out of date."""
    monkeypatch.chdir(workplace)
    blocks = BLOCK.findall(NEEDS.sub("", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")))
    assert blocks
    for language, block in blocks:
        if language == "python":
            exec(compile(block, page, "exec"), {})
            continue
        for line in block.splitlines():
            command, *arguments = shlex.split(line, comments=True)
            if command != "dynamo":
                assert command in ("make", "pip"), line
                continue
            with pytest.raises(SystemExit) as stop:
                main(arguments)
            assert stop.value.code == 0, line


def test_every_block_is_run_or_says_what_it_needs():
    """The command reference shows no commands to run. Fails for a page that no test knows."""
    run_elsewhere = {"guide", "serving", "your_own_data", "cli"}
    for page in ROOT.glob("docs/*.md"):
        text = page.read_text(encoding="utf-8")
        if page.stem not in {*WALKED, *run_elsewhere}:
            assert not BLOCK.search(NEEDS.sub("", text)), page
        for script in re.findall(r"^python (benchmarks/\S+)", "\n".join(NEEDS.findall(text)), flags=re.MULTILINE):
            assert (ROOT / script).is_file(), page


def test_the_reference_pages_are_those_of_the_code():
    """``make reference`` writes them. Fails if a setting or a command is not on its page."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import reference
    finally:
        sys.path.pop(0)
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == reference.configuration()
    silent = re.findall(r"^\| `(\w+)` \| (?!section).* \|  \|$", reference.configuration(), flags=re.MULTILINE)
    assert not silent, "these settings do not say what they do"
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == reference.commands()


def test_the_site_is_built_without_warnings(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-q", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip(), done.stderr
    assert (tmp_path / "site" / "tasks_later.html").is_file()


def test_the_guide_names_every_section_and_term():
    from dynamo_mtl.config import DynamoConfig
    from dynamo_mtl.training.objective import TERMS

    for name in ("data", "tasks", "model", "lora_configs", "router", "training", "compare"):
        assert name in DynamoConfig.model_fields
        assert f"`{name}" in GUIDE
    assert all(f"`{term}`" in GUIDE for term in TERMS)
    assert all(f"`{system}`" in GUIDE for system in SYSTEMS)
    assert all(task in README.replace(" ", "_") or task in GUIDE for task in TASKS)
