"""README.md and docs/ keep their promises: parsers accept the commands, links and paths lead somewhere, names in Python
examples can be imported. The commands in the scripts' docstrings are held to the same.

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

from training.run import recipe

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/*.md")), *(ROOT / name / "README.md" for name in ("training", "data_recipes"))]
PAGES.append(ROOT / "checkpoints/scenes/README.md")
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
MAX_WORDS = 900  # of README.md, which a newcomer reads to the end
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("[!_]*.py"))
COMMAND = re.compile(r"(?:-m|--module) scripts\.(\w+)([^`\n]*)")
MAKE = re.compile(r"(?:^ *|`|[$&] )make ([a-z][\w-]*)", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:checkpoints|data_recipes|docs|eval|mllm|scripts|tests|tokenizer|training)/[\w./-]*)`")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def shell_words(rest: str) -> list[str]:
    """The arguments of a command: up to a comment, a pipe, a redirection or the next command."""
    lexer = shlex.shlex(rest, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(takewhile(lambda word: not re.fullmatch(r"[();<>|&]+", word), lexer))


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(script, arguments) of each `python -m scripts.X ...`; torchrun's and deepspeed's too."""
    return [(name, shell_words(rest)) for name, rest in COMMAND.findall(text.replace("\\\n", " "))]


def anchors(page: Path) -> set[str]:
    """What a link may name after `#`: headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def docstring(script: str) -> str:
    return ast.get_docstring(ast.parse((ROOT / "scripts" / f"{script}.py").read_text())) or ""


def quoted() -> list:
    """A test case for each command, wherever it is quoted."""
    sources = {
        **{name: page.read_text() for name, page in zip(NAMES, PAGES, strict=True)},
        **{f"scripts/{script}.py": docstring(script) for script in SCRIPTS},
    }
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


def test_the_readme_is_short_and_quotes_commands():
    text = README.read_text()
    words = len(text.split())
    assert words < MAX_WORDS, f"README.md has {words} words, {MAX_WORDS} is the limit: move some to docs/"
    assert commands(text), "README.md quotes no `python -m scripts.X` command"
    assert MAKE.findall(text), "README.md quotes no `make X` command"


def test_the_readme_leads_to_every_page_of_docs():
    missing = {name for name in NAMES if name.startswith("docs/")} - set(LINK.findall(README.read_text()))
    assert not missing, f"README.md has no link to {', '.join(sorted(missing))}"


@pytest.mark.parametrize("name", NAMES)
def test_links_and_paths_lead_somewhere(name):
    page = ROOT / name
    text = page.read_text()
    for link in LINK.findall(text):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), f"{name} links to {link}; there is no such file"
        assert not anchor or anchor in anchors(target), f"{name} links to {link}; there is no such heading"
    for path in PATH.findall(text):
        assert (ROOT / path).exists() or (page.parent / path).exists(), f"{name} names {path}; there is no such file"


@pytest.mark.parametrize("name", NAMES)
def test_make_targets_exist(name):
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    unknown = set(MAKE.findall((ROOT / name).read_text())) - set(targets)
    assert not unknown, f"{name} quotes make {', '.join(unknown)}; the Makefile has {', '.join(targets)}"


@pytest.mark.parametrize("name", NAMES)
def test_python_examples_import_what_exists(name):
    for example in PYTHON.findall((ROOT / name).read_text()):
        for line in ast.parse(example).body:
            if isinstance(line, ast.Import):
                for module in line.names:
                    importlib.import_module(module.name)
            elif isinstance(line, ast.ImportFrom):
                module = importlib.import_module(line.module)
                missing = [one.name for one in line.names if not hasattr(module, one.name)]
                assert not missing, f"{name} imports {', '.join(missing)} of {line.module}, which has no such name"


RECIPES = {"train": recipe.TrainConfig, "train_tokenizer": recipe.TokenizerTrainConfig, "train_rl": recipe.RlConfig}


@pytest.mark.parametrize("name", NAMES)
def test_recipes_have_the_quoted_keys(name):
    """All that is no variable of the shell, nor a recipe of the reader's own."""
    for script, words in commands((ROOT / name).read_text()):
        if script in RECIPES and (ROOT / words[0]).exists():
            recipe.load_config(RECIPES[script], ROOT / words[0], [word for word in words[1:] if "$" not in word])


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
