"""Is a model healthy here? First what is installed, then the model.

torch, transformers and what stands on them are imported inside functions: they may be missing, too old or broken.
"""

import os
import platform
import resource
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"


class Check(NamedTuple):
    name: str
    healthy: bool
    detail: str


def examine(name: str, load: Callable[[str], tuple[Any, Any]]) -> Iterator[Check]:
    """What is installed, then the model that `load(name)` gives, with its processor. Where one cannot be had, there is
    nothing more to try."""
    yield attempt("versions", versions)
    try:
        loaded = load(name)
        from .model_checks import CHECKS, Patient
    except Exception as error:  # whatever a broken package or model leads to
        yield Check("loads", False, one_line(error))
        return
    for title, run in CHECKS.items():
        yield attempt(title, run, Patient(name, *loaded))


def attempt(title: str, run: Callable[..., str], *args: Any) -> Check:
    """Run a check; if it raises, the error becomes its finding."""
    try:
        return Check(title, True, run(*args))
    except Exception as error:
        return Check(title, False, one_line(error))


def one_line(error: Exception) -> str:
    """What an error says; with its kind, unless it was written for the user."""
    told = " ".join(str(error).split())
    return told if told and isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {told}"


def environment() -> dict[str, str]:
    """Versions, memory and, if torch can be imported, the device: for people to read."""
    packages = ", ".join(f"{name} {installed(name) or 'missing'}" for name in ("torch", "transformers"))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    facts = {
        "versions": f"Python {platform.python_version()}, {packages}",
        "memory": f"{used:.1f} GB used at most, {total:.1f} GB in this machine",
    }
    with suppress(Exception):  # a check has told it
        import torch

        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        facts["device"] = f"{gpu}, {torch.get_num_threads()} threads"
    return facts


# ---- what is installed


def versions() -> str:
    """How much of what is installed is as in requirements.lock. Raises ValueError when a package is out of its range
    in requirements.txt, or is missing and no model runs without it."""
    wrong, needed = [], needed_to_run()
    for requirement, reason in requirements().items():
        found = installed(requirement.name)
        if found and not fits(requirement):
            wrong.append(f"{requirement.name} {found}, which must be {requirement.specifier} ({reason})")
        elif not found and requirement.name in needed:
            wrong.append(f"{requirement.name} is not installed ({reason})")
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}: pip install -c requirements.lock PACKAGE installs the tested version")
    locked = [one for one in lock() if installed(one.name)]
    others = [one for one in locked if not fits(one)]
    return f"{len(locked) - len(others)} of {len(locked)} packages as in requirements.lock" + "".join(
        f", {one.name} {installed(one.name)} instead of {str(one.specifier).removeprefix('==')}" for one in others
    )


def missing() -> dict[str, str]:
    """{what is not installed: what for}, of requirements.txt."""
    return {
        str(requirement): reason for requirement, reason in requirements().items() if not installed(requirement.name)
    }


def requirements() -> dict[Requirement, str]:
    """{requirement: what for}."""
    lines = (line.partition("  # ") for line in REQUIREMENTS.read_text().splitlines())
    return {Requirement(wanted): reason for wanted, mark, reason in lines if mark}


def needed_to_run() -> set[str]:
    """Names of the packages that belong to no group."""
    project = tomllib.loads(REQUIREMENTS.with_name("pyproject.toml").read_text())["project"]
    return {Requirement(line).name for line in project["dependencies"]}


def lock() -> list[Requirement]:
    """What requirements.lock pins for this Python and system."""
    lines = (line.partition("#")[0].strip() for line in REQUIREMENTS.with_suffix(".lock").read_text().splitlines())
    pinned = [Requirement(line) for line in lines if line]
    return [one for one in pinned if one.marker is None or one.marker.evaluate()]


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def fits(requirement: Requirement) -> bool:
    return requirement.specifier.contains(installed(requirement.name), prereleases=True)
