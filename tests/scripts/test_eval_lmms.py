"""scripts.eval_lmms: what is printed and written, and one line for whatever a user can do wrong."""

import json
import sys
import time
from importlib.metadata import version

import lmms_eval.evaluator
import pytest

from data_recipes.scenes.world import World
from eval.results import find_files, results_page
from scripts.eval_lmms import main


@pytest.fixture(autouse=True)
def shapes(monkeypatch):
    """The world without the emoji font."""
    monkeypatch.setattr("data_recipes.scenes.world.World", lambda _="", size=128: World("shapes", size))


def test_scores_are_printed_and_written(run, tiny_folder, tmp_path):
    words = ("--model", tiny_folder, "--tasks", "scenes_pope,scenes_vqa_color", "--limit", 3, "--out", tmp_path / "out")
    ended = run(main, *words)
    assert ended.status == 0, ended.err
    assert "pope_accuracy" in ended.out and "scenes_vqa_color" in ended.out
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(report["scores"]) == {"scenes_pope", "scenes_vqa_color"}
    assert report["scores"]["scenes_vqa_color"].keys() == {"exact_match"}
    assert report["documents"] == {"scenes_pope": 3, "scenes_vqa_color": 3}
    assert report["settings"]["limit"] == 3 and report["versions"]["lmms-eval"] and report["unreadable"] == []
    rows = (tmp_path / "out" / "samples" / "scenes_pope.jsonl").read_text().splitlines()
    assert [json.loads(row)["doc_id"] for row in rows] == [0, 1, 2]
    assert json.loads(rows[0])["target"] == "yes"
    assert "| scenes_vqa_color.exact_match |" in results_page(find_files([tmp_path]))


@pytest.mark.parametrize(
    "words, line",
    [
        (("--model", "no_model", "--tasks", "scenes_vqa"), "unknown model 'no_model'"),
        (("--tasks", "scenes_vqa", "--limit", 0), "limit is 0; it must be at least 1"),
        (("--tasks", "scenes_vqa", "--batch-size", 0), "batch_size is 0"),
        (("--tasks", "scenes_vqa", "--cfg-scale", 0.5), "cfg_scale 0.5"),
        (("--tasks", "scenes_vqa", "--include", "nowhere"), "no folder nowhere with tasks"),
        (("--tasks", "scenes_vqa", "--mode", "draw"), "--mode: invalid choice: 'draw'"),
        (("--limit", 3), "--tasks"),
    ],
)
def test_wrong_words_are_one_line(refused, tmp_path, words, line):
    assert line in refused(main, "--out", tmp_path, *words)


@pytest.mark.slow  # lmms-eval reads its two thousand task files
def test_an_unknown_task_is_one_line(refused, tiny_folder, tmp_path):
    words = ("--model", tiny_folder, "--tasks", "scenes_vqa,mmee", "--out", tmp_path)
    assert "unknown task mmee: did you mean mme" in refused(main, *words)


def test_a_missing_package_is_one_line(refused, tiny_folder, tmp_path, monkeypatch):
    for module in ("lmms_eval", "lmms_eval.evaluator"):
        monkeypatch.setitem(sys.modules, module, None)
    words = ("--model", tiny_folder, "--tasks", "scenes_vqa", "--out", tmp_path)
    assert "pip install -e '.[eval]'" in refused(main, *words)


def test_a_package_that_lmms_eval_does_not_fit_is_named(refused, tiny_folder, tmp_path, monkeypatch):
    """It reaches into private modules of others, which move."""
    monkeypatch.setitem(sys.modules, "filelock._api", None)
    monkeypatch.delattr(lmms_eval.evaluator._enable_reentrant_filelocks, "_patched", raising=False)
    line = refused(main, "--model", tiny_folder, "--tasks", "scenes_vqa", "--limit", 1, "--out", tmp_path)
    assert f"filelock {version('filelock')} and lmms_eval {version('lmms_eval')} do not fit together" in line
    assert "filelock._api" in line and "pip install -c requirements.lock filelock" in line


def test_data_that_cannot_be_loaded_is_one_line(refused, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # lmms-eval tries five times
    (tmp_path / "saved" / "scenes_pope").mkdir(parents=True)
    words = ("--model", tiny_folder, "--tasks", "scenes_pope", "--out", tmp_path / "out", "--data", tmp_path / "saved")
    error = refused(main, *words)
    assert "lmms-eval gave up" in error and "--data" in error
    assert not (tmp_path / "out" / "results.json").exists()
