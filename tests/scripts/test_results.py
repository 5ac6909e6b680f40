"""scripts.results: the numbers of README.md and RESULTS.md are those of the JSON files."""

import json
import shutil

import pytest

from eval.results import ROOT, find_files, lines_of, read_results, results_page, with_table
from scripts import results
from scripts.results import README_RESULTS, main


def test_the_numbers_of_the_readme_are_those_of_the_results():
    readme = (ROOT / "README.md").read_text()
    assert with_table(readme, read_results(README_RESULTS)) == readme, "run python -m scripts.results"


def test_results_md_has_the_numbers_of_all_results():
    page = results_page(find_files([ROOT / "checkpoints"]))
    assert (ROOT / "RESULTS.md").read_text() == page, "run python -m scripts.results"


def test_other_numbers_give_another_table():
    readme, content = (ROOT / "README.md").read_text(), read_results(README_RESULTS)
    content["parts"]["tokenizer"]["scores"]["psnr"] = 31.25
    content["parts"]["drawing"]["settings"]["limit"] = 20
    table = with_table(readme, content)
    assert "| image tokenizer, PSNR | 31.2 dB | 27 dB |" in table
    assert "| drawing, GenEval's rules, 20 of 457 raw prompts, " in table
    assert len(table.splitlines()) == len(readme.splitlines())
    del content["parts"]["speed"]
    with pytest.raises(ValueError, match="no speed.image: run scripts.eval_scenes with all parts"):
        with_table(readme, content)
    with pytest.raises(ValueError, match="no table"):
        with_table("# Ours\n", content)


def test_every_evaluation_has_its_section(run, tmp_path):
    content = {
        "date": "2026-11-22T05:53:16+00:00",
        "command": "python -m scripts.eval_lmms --tasks pope",
        "model": "tiny",
        "model_hash": "0123",
        "versions": {"torch": "2.14.1"},
        "settings": {"limit": 5},
        "scores": {"pope": {"accuracy": 0.5}, "overall": 1 / 3},
    }
    (tmp_path / "results_pope.json").write_text(json.dumps(content))
    shutil.copy(README_RESULTS, tmp_path / "results.json")
    shutil.copy(ROOT / "README.md", tmp_path / "README.md")
    ended = run(main, tmp_path, "--out", tmp_path / "RESULTS.md", "--readme", tmp_path / "README.md")
    assert ended.status == 0, ended.err
    page = (tmp_path / "RESULTS.md").read_text()
    assert page.index("## eval_scenes: scenes, ") < page.index("## eval_lmms: tiny, 2026-11-22")
    for told in ("model hash: 0123", "torch 2.14.1", "settings: limit 5", "| pope.accuracy | 0.5 |", "| 0.3333 |"):
        assert told in page
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()


def test_every_number_of_a_file_is_told():
    names = [line.name for line in lines_of(read_results(README_RESULTS))]
    assert {"speed.image", "questions.what", "drawing.held_out.colors", "tokenizer.usage.7"} <= set(names)
    assert len(names) == len(set(names))


def test_bad_files_are_one_line(refused, tmp_path):
    assert "no results in" in refused(results.main, tmp_path)
    for text in ("[]", "{", '{"date": "today"}'):
        (tmp_path / "results.json").write_text(text)
        assert "holds no results" in refused(results.main, tmp_path)
