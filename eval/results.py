"""Results files of evaluations as a page of tables, and the few numbers that README.md shows."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .pieces import flatten
from .scenes.suite import Line, compare

ROOT = Path(__file__).resolve().parent.parent
README_TABLE = re.compile(r"^(\| measured on .*\n\|[-| ]+\|\n)((?:\|.*\n)+)", re.MULTILINE)
INTRODUCTION = "Written by `python -m scripts.results` from the files named here; change those, not this page."


class Row(NamedTuple):
    """Of README's table; `name` is of a score."""

    label: str
    name: str
    value: str
    goal: str = ""


ROWS = (
    Row("questions as people put them", "trained_forms.overall", "{:.2f}", "{:.2f}"),
    Row("the same, in forms of no training sample", "unseen_forms.overall", "{:.2f}", "{:.2f}"),
    Row("short answers, exact match", "questions.overall", "{:.2f}", "{:.2f}"),
    Row("messages that want words and get these alone", "talk.words", "{:.2f}", "{:.2f}"),
    Row("requests to draw in new words: one picture", "talk.pictures", "{:.2f}", "{:.2f}"),
    Row("edits in new words: done", "editing.model.done", "{:.2f}", "{:.2f}"),
    Row("edits in new words: the rest kept", "editing.model.kept", "{:.2f}", "{:.2f}"),
    Row(
        "drawing, GenEval's rules, {limit} of 457 raw prompts, {images_per_prompt} images each",
        "drawing.model.overall",
        "{:.2f}",
        "{:.2f}",
    ),
    Row(
        "the same detector on true renders, through the image tokenizer", "drawing.tokenizer_ceiling.overall", "{:.2f}"
    ),
    Row("image tokenizer, PSNR", "tokenizer.psnr", "{:.1f} dB", "{:.0f} dB"),
    Row("image tokenizer, zero-shot class accuracy", "tokenizer.zero_shot", "{:.2f}", "{:.2f}"),
    Row("one image with guidance", "speed.image", "{:.1f} s", "{:g} s"),
    Row("first output of `scripts.chat`, from its start", "speed.chat_first_output", "{:.1f} s", "{:g} s"),
)


def find_files(places: Sequence[Path]) -> list[Path]:
    """Raises ValueError for a place without results."""
    files: list[Path] = []
    for place in places:
        found = [place] if place.is_file() else sorted(place.rglob("results*.json"))
        if not found:
            raise ValueError(f"no results in {place}: give a results.json, or a folder that holds some")
        files += found
    return files


def read_results(file: Path) -> dict[str, Any]:
    """Raises ValueError for a file without scores."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.keys() & {"parts", "scores"}:
            return content
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"{file} holds no results: it has no scores")


def lines_of(content: dict[str, Any]) -> list[Line]:
    """All its numbers, with dotted names and, where there are such, goals."""
    scores = content.get("scores") or {part: result["scores"] for part, result in content["parts"].items()}
    return [compare(*line) for name, value in scores.items() for line in flatten(name, value)]


# ---- RESULTS.md


def results_page(files: Sequence[Path]) -> str:
    sections = ["\n".join(section(file, read_results(file))) for file in files]
    return "\n\n".join(["# Results", INTRODUCTION, *sections]) + "\n"


def section(file: Path, content: dict[str, Any]) -> Iterator[str]:
    script = re.search(r"scripts\.(\w+)", content["command"])
    title = script[1] if script else content["command"]
    yield f"## {title}: {content.get('model', 'no model')}, {content['date'][:10]}\n"
    yield f"- file: `{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}`"
    yield f"- command: `{content['command']}`"
    yield f"- model hash: {content.get('model_hash', 'none')}"
    yield f"- versions: {listed(content['versions'])}"
    for settings, parts in settings_of(content).items():
        yield f"- settings{f' of {parts}' if parts else ''}: {settings}"
    yield "\n| | value | goal |\n|---|---|---|"
    for line in lines_of(content):
        yield f"| {line.name} | {line.value:.4g} | {line.goal}{'' if line.met in (None, True) else ' (missed)'} |"


def settings_of(content: dict[str, Any]) -> dict[str, str]:
    """{settings: the parts that have them}; no parts where all are alike."""
    if "parts" not in content:
        return {listed(content.get("settings", {})): ""}
    parts: dict[str, list[str]] = {}
    for name, part in content["parts"].items():
        parts.setdefault(listed(part["settings"]), []).append(name)
    return {settings: ", ".join(names) if len(parts) > 1 else "" for settings, names in parts.items()}


def listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "none"


# ---- README.md


def with_table(readme: str, content: dict[str, Any]) -> str:
    """The page with the rows of its table from a results file of eval_scenes. ValueError when it has no such table."""
    if not README_TABLE.search(readme):
        raise ValueError("README.md has no table that begins with '| measured on'")
    lines = {line.name: line for line in lines_of(content)}
    rows = "".join(f"{table_row(row, lines, content['parts'])}\n" for row in ROWS)
    return README_TABLE.sub(lambda table: table[1] + rows, readme)


def table_row(row: Row, lines: dict[str, Line], parts: dict[str, Any]) -> str:
    line = lines.get(row.name)
    if not line:
        raise ValueError(f"the results have no {row.name}: run scripts.eval_scenes with all parts")
    settings = parts[row.name.partition(".")[0]]["settings"]
    label = row.label.format(**{name: "all" if value is None else value for name, value in settings.items()})
    goal = row.goal.format(float(line.goal.split()[1])) if row.goal else ""
    return f"| {label} | {row.value.format(line.value)} | {goal} |".replace("%", " %").replace("|  |", "| |")
