"""README and guide: every command runs, every figure comes from a result file."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import newcomer
import pytest
import tables
from reliability import ROWS, find_tests, table_line
from tiny import TASKS

from dynamo_mtl.cli import main
from dynamo_mtl.cli.inference import ROWS_FAILED
from dynamo_mtl.config import load_config
from dynamo_mtl.config.comparison_config import SYSTEMS
from dynamo_mtl.config.identity import changed_setting
from dynamo_mtl.evaluation.result import read_result
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


def test_the_readmes_table_is_of_the_settings_that_ship():
    """Fails if the configuration was changed and its result not measured again."""
    result = read_result(ROOT / "results" / "real-cpu.json")
    assert result.settings
    assert changed_setting(result.settings, load_config(ROOT / "configs" / "compare.yaml")) is None
    assert README.count("| system |") == 1


def test_the_readme_is_short_and_shows_code_first():
    """Its first screen is a picture and a program; no page excuses its figures with their age."""
    assert len(README.splitlines()) <= 120
    first = README.splitlines()[:20]
    assert any(line.startswith("![") for line in first)
    program = _blocks(README, "python")[0]
    assert len([line for line in program.splitlines() if line.strip()]) <= 6
    assert README.index(program) < README.index("## Install")
    assert not [page for page in PAGES if "of an earlier revision" in page.read_text(encoding="utf-8")]


def test_files_of_the_source_that_pages_name_are_there():
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        for name in re.findall(r"`(?:src/dynamo_mtl/)?((?:\w+/)*\w+\.py)`", page.read_text(encoding="utf-8")):
            places = (ROOT, ROOT / "src" / "dynamo_mtl", ROOT / "tests", ROOT / "benchmarks", ROOT / "docs")
            assert any((place / name).is_file() for place in places), (page.name, name)


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
    (folder / "reviews.csv").write_text("review\nit was bad\nit was fine\n")
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
    """On a tiny model with other tables. What ``init``, ``data check`` and ``train`` do, test_newcomer.py sees."""
    monkeypatch.chdir(workplace)
    rows = [f"the {what} {n} is late,{what}" for n in range(12) for what in ("bus", "tram")]
    (workplace / "topics").mkdir()
    for split in ("train", "validation"):
        (workplace / "topics" / f"{split}.csv").write_text("\n".join(["text,label", *rows]))
    (workplace / "more.csv").write_text("text,label\nI love it,positive\nI hate it,negative\n")
    lines = [shlex.split(line, comments=True)[1:] for line in COMMANDS if line.startswith("dynamo ")]
    seen_elsewhere = [line for line in lines if line[0] in ("init", "data", "train")]
    assert all(line in newcomer.commands() for line in seen_elsewhere)
    own = [line for line in lines if line[0] not in ("init", "data", "train", "serve")]
    assert [line[0] for line in own] == ["evaluate", "predict", "predict", "add-task", "evaluate"]
    few = ["training.eval_examples=4", "training.router.novelty_examples=8", "training.router.feature_epochs=1"]
    for line in own:
        arguments = [
            one.replace("runs/own/", "runs/quickstart/").replace("tasks.reviews.", "tasks.sentiment.") for one in line
        ]
        with pytest.raises(SystemExit) as stop:
            main([*arguments, *(["tasks.topics.training.max_steps=1", *few] if line[0] == "add-task" else [])])
        # A row may be routed to a task that needs a passage, which it then lacks.
        assert stop.value.code in ((0, ROWS_FAILED) if "--input" in line else (0,)), line
    assert (workplace / "result.json").is_file()
    assert len((workplace / "answered.csv").read_text().splitlines()) == 3
    assert (workplace / "runs" / "more" / "dynamo.json").is_file()
    shutil.rmtree(workplace / "runs" / "more")


def test_python_blocks_run_as_written(workplace, monkeypatch):
    from dynamo_mtl.training import objective

    monkeypatch.chdir(workplace)
    monkeypatch.setattr(objective, "TERMS", dict(objective.TERMS))
    rows = [f"it was {word} on day {n},{stars}" for n in range(12) for word, stars in (("bad", 1), ("fine", 4))]
    (workplace / "reviews.csv").write_text("\n".join(["review,stars", *rows]))
    rows = [f"who is at gate {n}?,{who} is at gate {n} today.,{who}" for n in range(12) for who in ("Ada", "Ben")]
    (workplace / "questions.csv").write_text("\n".join(["question,context,answer", *rows]))
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
    "labels",
    "tables",
)
"""Pages whose blocks are run here; README, guide and serving above and below, your_own_data by test_newcomer.py."""
NEEDS = re.compile(r"<!-- needs: (?:hub|gpu|data|docker|ray|mcp) -->\n\n```.*?```", flags=re.DOTALL)
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
            assert stop.value.code in ((0, ROWS_FAILED) if "--input" in arguments else (0,)), line


def test_the_skill_and_the_page_for_agents_have_commands_that_other_tests_run():
    """README's are run above, and those of init, check and training by test_newcomer.py. Fails for any other."""
    skill = (ROOT / "skills" / "dynamo" / "SKILL.md").read_text(encoding="utf-8")
    head = skill.split("---")[1]
    assert re.search(r"^name: dynamo$", head, re.MULTILINE)
    assert 50 < len(re.findall(r"^description: (.*)$", head, re.MULTILINE)[0]) < 1024
    known = {tuple(shlex.split(line, comments=True)) for line in COMMANDS}
    lines = [line for block in _blocks(skill, "bash") for line in block.splitlines()]
    assert len(lines) == 7
    for line in lines:
        words = shlex.split(line)
        assert tuple(word for word in words if word != "--json") in known, line
    page = (ROOT / "docs" / "llms.txt").read_text(encoding="utf-8")
    assert [line.strip() for line in page.splitlines() if line.startswith("    ")] == lines
    for file in re.findall(r"\]\(([^)]+)\)", page):
        assert (ROOT / "docs" / file).is_file(), file


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
    assert (ROOT / "docs" / "llms.txt").read_text(encoding="utf-8") == reference.for_agents()


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
