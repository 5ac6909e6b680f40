"""The two lists of dependencies agree, and our package names are ours alone."""

import sys
import tomllib
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ["tokenizer", "mllm", "training", "eval", "data_recipes"]
PYPROJECT = ROOT / "pyproject.toml"
REQUIREMENTS = ROOT / "requirements.txt"


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


def test_packages_are_listed_literally():
    tools = tomllib.loads(PYPROJECT.read_text())["tool"]
    assert sorted(tools["setuptools"]["packages"]) == sorted([*PACKAGES, "mllm.serve"])


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
