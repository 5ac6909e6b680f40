"""Commands quoted in README.md and in the scripts' docstrings are complete: the parsers accept them.

To name a script without a whole command, write `scripts.chat`.
"""

import argparse
import ast
import importlib
import re
import shlex
import sys
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("[!_]*.py"))
COMMAND = re.compile(r"(?:-m|--module) scripts\.(\w+)([^`\n]*)")
MAKE = re.compile(r"(?:^ *|`|[$&] )make ([a-z][\w-]*)", re.MULTILINE)


def shell_words(rest: str) -> list[str]:
    """The arguments of a command: up to a comment, a pipe, a redirection or the next command."""
    lexer = shlex.shlex(rest, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(takewhile(lambda word: not re.fullmatch(r"[();<>|&]+", word), lexer))


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(script, arguments) of each `python -m scripts.X ...`; torchrun's and deepspeed's too."""
    return [(name, shell_words(rest)) for name, rest in COMMAND.findall(text.replace("\\\n", " "))]


def readme() -> str:
    return README.read_text() if README.is_file() else ""


def docstring(script: str) -> str:
    return ast.get_docstring(ast.parse((ROOT / "scripts" / f"{script}.py").read_text())) or ""


def quoted() -> list:
    """A test case for each command, wherever it is quoted."""
    sources = {"README.md": readme(), **{f"scripts/{script}.py": docstring(script) for script in SCRIPTS}}
    return [
        pytest.param(source, script, words, id=f"{source}: {shlex.join([script, *words])}")
        for source, text in sources.items()
        for script, words in commands(text)
    ]


class Accepted(Exception):
    """The parser took the arguments; the script need not go on."""


@pytest.fixture
def run_script(monkeypatch):
    """run_script(script, words): the script's main in this process, up to where its arguments are parsed."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(*args, **kwargs):
        parse_args(*args, **kwargs)
        raise Accepted

    def run_script(script: str, words: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", [f"scripts.{script}", *words])
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        importlib.import_module(f"scripts.{script}").main()

    return run_script


def test_the_readme_quotes_commands():
    assert README.is_file(), "README.md is missing"
    assert commands(readme()), "README.md quotes no `python -m scripts.X` command"
    assert MAKE.findall(readme()), "README.md quotes no `make X` command"


def test_make_targets_exist():
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    unknown = set(MAKE.findall(readme())) - set(targets)
    assert not unknown, f"README.md quotes make {', '.join(unknown)}; the Makefile has {', '.join(targets)}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_says_how_it_is_called(script):
    assert script in [name for name, _ in commands(docstring(script))], (
        f"the docstring of scripts/{script}.py has no example command"
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(run_script, capsys, script):
    with pytest.raises(SystemExit) as stop:
        run_script(script, ["--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("usage:")


@pytest.mark.parametrize(("source", "script", "words"), quoted())
def test_quoted_commands_are_accepted(run_script, capsys, source, script, words):
    assert script in SCRIPTS, f"{source} quotes scripts.{script}; there is no such script"
    command = shlex.join(["python", "-m", f"scripts.{script}", *words])
    reason = "the script does not call parse_args"
    try:
        run_script(script, words)
    except Accepted:
        return
    except ValueError as error:
        reason = error
    except SystemExit as end:
        if not end.code:  # --help
            return
        reason = capsys.readouterr().err.strip().splitlines()[-1]
    pytest.fail(f"{source} quotes `{command}`: {reason}")
