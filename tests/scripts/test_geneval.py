"""scripts.geneval and scripts.draw_benchmark, from prompts to a score with its page."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data_recipes.scenes.world import CLASSES, COLORS
from eval.results import find_files, results_page
from eval.scenes.detector import Detector, DetectorConfig
from scripts import draw_benchmark
from scripts.geneval import PROMPTS, main
from tests.tiny_networks import save_clip, save_mask2former

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    """Random weights, which see something everywhere."""
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    config = DetectorConfig(CLASSES, tuple(COLORS), widths=(4, 4, 8, 8), depths=(1, 1, 1), neck_width=8)
    tiny = Detector(config)
    tiny.class_head.bias.data[:3] = 4.0
    tiny.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words(tiny_folder, tmp_path_factory) -> list:
    """A short `generate` without --out."""
    prompts = tmp_path_factory.mktemp("prompts") / "metadata.jsonl"
    lines = PROMPTS.read_text().splitlines()
    prompts.write_text("\n".join([lines[0], lines[100], lines[500], lines[-1].replace("a photo", "\\ud83d a photo")]))
    options = ["--images-per-prompt", 2, "--cfg-scale", 1, "--batch-size", 2]
    return ["generate", "--model", tiny_folder, "--prompts", prompts, *options]


def test_draw_score_and_look(run, words, detector, tmp_path):
    ended = run(main, *words, "--out", tmp_path)
    assert ended.status == 0 and "6 of 8 files" in ended.out
    assert ended.err.count("not drawn: 00003") == 2 and "no Unicode" in ended.err
    ended = run(main, "score", tmp_path, "--detector", "scenes", "--weights", detector)
    assert ended.status == 0, ended.err
    result = json.loads((tmp_path / "results.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 8 == result["images"]
    assert set(result["scores"]) == {row["tag"] for row in rows} | {"overall"}
    assert result["settings"]["cfg_scale"] == 1.0 and result["command"].startswith("python -m scripts.geneval score")
    assert result["not_judged"] == ["00003/samples/0000.png", "00003/samples/0001.png"]
    things = [{clause["class"] for clause in json.loads(row["metadata"])["include"]} for row in rows[::2]]
    unknown = sum(not names <= set(CLASSES) for names in things)
    assert result["prompts_with_unknown_things"] == unknown > 0
    for told in (
        "overall",
        "cfg_scale 1.0",
        result["model_hash"],
        "2 images count as wrong",
        f"{unknown} prompts name",
    ):
        assert told in ended.out
    assert "<svg" in (tmp_path / "failures.html").read_text()
    page = results_page(find_files([tmp_path]))
    assert result["command"] in page and f"| overall | {result['scores']['overall']:.4g} |" in page


def test_score_refuses_half_a_run_before_it_loads_anything(run, refused, words, tmp_path):
    run(main, *words, "--out", tmp_path)
    (tmp_path / "00001/samples/0001.png").unlink()
    line = refused(main, "score", tmp_path, "--detector", "mask2former", "--weights", "no/such-model")
    assert "is incomplete" in line
    assert "holds no images" in refused(main, "score", tmp_path / "nowhere", "--detector", "scenes")
    assert "--detector" in refused(main, "score", tmp_path)
    assert "seed -1 is outside" in refused(main, *words, "--out", tmp_path, "--seed", -1)
    assert "top_k was 0, is 5" in refused(main, *words, "--out", tmp_path, "--top-k", 5)


def test_mask2former_and_clip_score_from_local_weights(run, words, tmp_path):
    run(main, *words, "--out", tmp_path / "out")
    weights, clip = save_mask2former(tmp_path / "mask2former"), save_clip(tmp_path / "clip")
    ended = run(main, "score", tmp_path / "out", "--detector", "mask2former", "--weights", weights, "--clip", clip)
    assert ended.status == 0 and "GenEval (HF detector)" in ended.out, ended.err
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (result["detector"], result["clip"]) == ("HF detector", str(clip))
    assert result["prompts_with_unknown_things"] == 0


def test_other_benchmarks_name_their_scorer(run, refused, tiny_folder, tmp_path):
    prompts = tmp_path / "prompts" / "0.txt"
    prompts.parent.mkdir()
    prompts.write_text("a cow")
    words = ("dpg", "--model", tiny_folder, "--cfg-scale", 1, "--prompts")
    ended = run(draw_benchmark.main, *words, prompts.parent, "--out", tmp_path / "out")
    assert ended.status == 0 and "1 of 1 files" in ended.out
    assert f"--image-root-path {tmp_path}/out/images --resolution 32 --pic-num 4" in ended.out
    assert "holds no prompts" in refused(draw_benchmark.main, *words, tmp_path, "--out", tmp_path / "out")


@pytest.mark.slow
def test_a_killed_process_leaves_whole_files_and_is_continued(run, words, tmp_path):
    command = [sys.executable, "-m", "scripts.geneval", *map(str, words), "--out", str(tmp_path / "killed")]
    with subprocess.Popen(command, cwd=ROOT) as process:
        while not list(tmp_path.rglob("samples/*.png")) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    run(main, *words, "--out", tmp_path / "killed")
    run(main, *words, "--out", tmp_path / "whole")
    for file in (tmp_path / "whole").rglob("*"):
        if file.is_file():
            assert (tmp_path / "killed" / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_torchrun_gives_the_numbers_of_one_process(run, words, detector, tmp_path):
    run(main, *words, "--out", tmp_path / "one")
    score = ["score", "--detector", "scenes", "--weights", str(detector)]
    run(main, *score, tmp_path / "one")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "scripts.geneval"]
    subprocess.run([*torchrun, *map(str, words), "--out", str(tmp_path / "two")], check=True, cwd=ROOT)
    subprocess.run([*torchrun, *score, str(tmp_path / "two")], check=True, cwd=ROOT)
    one, two = ((tmp_path / name / "results.jsonl").read_text() for name in ("one", "two"))
    assert one == two
