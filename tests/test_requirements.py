"""The hash-locked requirements are complete, are what was tested, and respect the version floors."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OWN = re.compile(r"dynamo-mtl\[(.*)\]")


def _brought_by(extra):
    """The requirements of an extra, and of our extras that it names."""
    for line in EXTRAS[extra]:
        own = OWN.fullmatch(line)
        yield from (need for name in own[1].split(",") for need in _brought_by(name)) if own else [line]


SETS = {
    "base": PROJECT["dependencies"],
    **{extra: [*PROJECT["dependencies"], *_brought_by(extra)] for extra in EXTRAS},
    "minilm": EXTRAS["minilm"],  # a file to install beside one of the others
}


def _locked(name):
    """Name → versions of a file, with the number of hashes of each."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    found = {}
    for block in re.split(r"\n(?=[a-z0-9])", re.sub(r"(?m)^ *#.*\n?", "", text)):
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)", block)
        if match:
            found.setdefault(canonicalize_name(match[1]), []).append((Version(match[2]), block.count("--hash=sha256:")))
    return found


@pytest.mark.parametrize("name", SETS)
def test_every_file_has_all_direct_dependencies_within_their_ranges_and_hashes_for_all(name):
    locked = _locked(name)
    assert all(hashes > 0 for versions in locked.values() for _, hashes in versions)
    for line in SETS[name]:
        requirement = Requirement(line)
        versions = locked[canonicalize_name(requirement.name)]
        assert all(version in requirement.specifier for version, _ in versions), line


@pytest.mark.parametrize("name", SETS)
def test_what_is_locked_is_what_is_tested(name):
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    tested = {canonicalize_name(key): Version(value) for key, value in pinned.items()}
    locked = _locked(name)
    common = locked.keys() & tested.keys()
    assert len(common) >= min(40, len(locked))
    assert all([version for version, _ in locked[key]] == [tested[key]] for key in common)


def test_versions_with_known_holes_are_excluded():
    floors = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    assert Version("2.9.1") not in floors["torch"]
    assert Version("5.4.0") not in floors["transformers"]
