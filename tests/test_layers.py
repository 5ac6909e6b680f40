"""Imports go one way, tokenizer <- mllm <- training <- eval <- scripts, and reach only declared packages."""

import ast
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
# Package -> the packages of this repository, and the dependency groups of pyproject.toml, that it may import.
MAY_IMPORT = {
    "tokenizer": ([], ["run", "train"]),
    "mllm": (["tokenizer"], ["run", "serve"]),
    "data_recipes": (["tokenizer"], ["run", "train"]),
    "training": (["tokenizer", "mllm", "data_recipes"], ["run", "train"]),
    "eval": (["tokenizer", "mllm", "data_recipes", "training"], ["run", "train", "eval"]),
    "scripts": (["tokenizer", "mllm", "training", "eval", "data_recipes"], ["run", "train", "eval"]),
}
RUN_SCRIPTS = ["demo", "chat", "text_to_image", "edit_image"]
RUN_MODULES = ["eval.demo", "scripts._terminal", "eval.drawn_folder"]  # which these import when they run


def imports(package: str) -> list[tuple[str, str]]:
    """(file:line, top-level name) of every absolute import, those inside functions included."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            found += [(f"{path.relative_to(ROOT)}:{node.lineno}", name.split(".")[0]) for name in names]
    return found


def groups() -> dict[str, set[str]]:
    """Group -> names of its distributions; "run" is what is always installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = {"run": project["dependencies"], **project["optional-dependencies"]}
    return {group: {canonicalize_name(Requirement(line).name) for line in lines[group]} for group in lines}


def modules(distributions: set[str]) -> set[str]:
    """Top-level modules of distributions; for those not installed here, a guess from the name."""
    installed = packages_distributions().items()
    known = {name for name, owners in installed if distributions & set(map(canonicalize_name, owners))}
    return known | {name.replace("-", "_") for name in distributions}


def brought_along(distributions: set[str]) -> set[str]:
    """With all that they need, as far as it is installed."""
    found, waiting = set(), list(distributions)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needed = [Requirement(line) for line in requires(name) or []]
        except PackageNotFoundError:
            continue
        waiting += [
            canonicalize_name(one.name) for one in needed if not one.marker or one.marker.evaluate({"extra": ""})
        ]
    return found


def test_every_package_is_listed():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_what_lies_below_them(package):
    allowed = {package, *MAY_IMPORT[package][0]}
    wrong = [f"{where}: {name}" for where, name in imports(package) if name in {*MAY_IMPORT, "tests"} - allowed]
    assert not wrong, f"of this repository, {package} may import {', '.join(sorted(allowed))}; not {wrong}"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_are_declared(package):
    names = MAY_IMPORT[package][1]
    allowed = {
        *sys.stdlib_module_names,
        *MAY_IMPORT,
        *modules(set().union(*(groups()[name] for name in names))),
    }
    wrong = [f"{where}: {name}" for where, name in imports(package) if name not in allowed]
    assert not wrong, f"not in the groups {names} of pyproject.toml: {wrong}"


def test_imports_make_no_circle():
    """Those inside functions, and those for types, included."""
    files = [path.relative_to(ROOT) for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]
    names = {".".join(file.with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    graph = {name: set() for name in names}
    for name, file in names.items():
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.Import):
                graph[name] |= {one.name for one in node.names} & names.keys()
            elif isinstance(node, ast.ImportFrom):
                above = ".".join(file.parts[: len(file.parts) - node.level]) if node.level else ""
                start = ".".join(filter(None, (above, node.module)))
                found = [f"{start}.{one.name}" for one in node.names]
                graph[name] |= {one if one in names else start for one in found} & names.keys() - {name}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_scenes_world_needs_only_numpy_and_pillow():
    allowed = {*sys.stdlib_module_names, "numpy", "PIL", "data_recipes"}
    world = ("data_recipes/scenes/",)
    wrong = [f"{where}: {name}" for where, name in imports("data_recipes") if where.startswith(world)]
    wrong = [line for line in wrong if line.split(": ")[1] not in allowed]
    assert not wrong, f"scenes and artwork may import the standard library, numpy and PIL; not {wrong}"


def test_running_a_model_needs_only_the_run_group():
    """`make demo` installs no more than that. To import others, such as timm, would delay the first word of a chat."""
    run, *others = groups().values()
    hidden = sorted(modules(set().union(*others) - brought_along(run)))
    wanted = ", ".join(["mllm", "mllm.decode.engine", *RUN_MODULES, *(f"scripts.{script}" for script in RUN_SCRIPTS)])
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden})); import {wanted}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_scripts_parse_and_call():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "scripts").glob("*.py")}
    wrong = {name: length for name, length in lengths.items() if length > 80}
    assert not wrong, f"over 80 lines, so that something belongs into a package: {wrong}"
