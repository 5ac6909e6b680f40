"""The lists of dependencies agree, and our package names are ours alone."""

import sys
import tomllib
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from setuptools import find_packages

ROOT = Path(__file__).parents[1]
PACKAGES = ["tokenizer", "mllm", "training", "eval", "data_recipes"]
PYPROJECT = ROOT / "pyproject.toml"
REQUIREMENTS = ROOT / "requirements.txt"
LOCK = ROOT / "requirements.lock"


def ranges(lines: list[str]) -> dict[str, str]:
    """Normalised name -> version range."""
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(one.name): str(one.specifier) for one in parsed}


def groups() -> dict[str, dict[str, str]]:
    """The groups of pyproject.toml; "run" is what is always installed."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    lines = {"run": project["dependencies"], **project["optional-dependencies"]}
    return {name: ranges(lines[name]) for name in lines}


def required() -> list[list[str]]:
    """[requirement, reason] of each line of requirements.txt that pip reads."""
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    return [line.split("  # ") for line in lines]


def test_requirements_txt_is_the_union_of_the_groups():
    union = {}
    for name, group in groups().items():
        if name != "flash":
            union |= group
    assert ranges([line[0] for line in required()]) == union


def test_requirements_txt_says_what_each_package_is_for():
    assert [line for line in required() if len(line) != 2] == []


def test_flash_attention_is_a_commented_line():
    """Building it needs CUDA, so `pip install -r requirements.txt` must not try."""
    commented = [line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("# flash-attn")]
    assert ranges([line.removeprefix("# ") for line in commented]) == groups()["flash"]


def locked() -> list[Requirement]:
    lines = [line.partition("#")[0].strip() for line in LOCK.read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def test_the_lock_pins_each_package_once_and_names_no_place():
    names = [canonicalize_name(one.name) for one in locked()]
    assert sorted(names) == sorted(set(names))
    assert [str(one) for one in locked() if one.url or [clause.operator for clause in one.specifier] != ["=="]] == []
    assert [line for line in LOCK.read_text().splitlines() if line.startswith("-") or "://" in line] == []


def test_the_lock_has_all_groups_within_their_ranges():
    """`make lock` renews it."""
    pinned = {canonicalize_name(one.name): next(iter(one.specifier)).version for one in locked()}
    wanted = {name: group for name, group in groups().items() if name != "flash"}
    wrong = [
        f"{package} {bounds} of group {name}, locked is {pinned.get(package)}"
        for name, group in wanted.items()
        for package, bounds in group.items()
        if package not in pinned or not SpecifierSet(bounds).contains(pinned[package])
    ]
    assert not wrong, wrong


def test_all_packages_are_found_and_no_others():
    """A folder without __init__.py would be left out of an installation."""
    where = tomllib.loads(PYPROJECT.read_text())["tool"]["setuptools"]["packages"]["find"]
    found = set(find_packages(str(ROOT), include=where["include"]))
    folders = {file.parent for name in PACKAGES for file in (ROOT / name).rglob("*.py")}
    data = ROOT / "eval" / "lmms" / "tasks"  # whose functions lmms-eval loads by path
    assert found == {".".join(folder.relative_to(ROOT).parts) for folder in folders - {data}}


@pytest.mark.parametrize("name", PACKAGES)
def test_an_installed_package_has_its_data(name):
    """lmms-eval runs our plugin from anywhere, and its tasks read these files."""
    patterns = tomllib.loads(PYPROJECT.read_text())["tool"]["setuptools"]["package-data"].get(name, [])
    listed = {file for pattern in patterns for file in (ROOT / name).glob(pattern)}
    files = {file for file in (ROOT / name).rglob("*") if file.is_file()}
    assert {file for file in files if file.suffix not in (".py", ".pyc", ".md")} <= listed


@pytest.mark.parametrize("name", PACKAGES)
def test_no_other_package_has_our_name(name):
    """PyPI has packages of these names, and the one that is found first wins without a word."""
    assert Path(find_spec(name).origin).parent == ROOT / name
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
    other = PathFinder.find_spec(name, elsewhere)
    owners = set(packages_distributions().get(name, [])) - {"mllm"}
    remedy = f"pip uninstall {' '.join(sorted(owners)) or name}"
    assert other is None or other.origin is None, f"another package {name} is at {other.origin}: {remedy}"
    assert not owners, f"another package {name} is installed: {remedy}"
