"""scripts.image_metrics: numbers, their file, saved statistics, and bad input."""

import json
from pathlib import Path

import pytest
from PIL import Image

from eval.drawn_folder import save
from eval.results import find_files, results_page
from scripts.image_metrics import main
from tests.tiny_networks import save_clip


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Stripes, finer ones, and plain colours; one stripe is damaged."""
    root = tmp_path_factory.mktemp("images")
    for place in range(4):
        for name, period in (("coarse", 8), ("fine", 6)):
            image = Image.linear_gradient("L").resize((32, 32)).point(lambda v, p=period + place: 255 * (v // p % 2))
            save(root / name / f"{place}.png", image.convert("RGB"), {"prompt": "stripes"})
        save(root / "plain" / f"{place}.png", Image.new("RGB", (32, 32), (60 * place, 0, 0)), {"prompt": "a colour"})
    (root / "coarse" / "9.png").write_bytes(b"damaged")
    return {name: root / name for name in ("coarse", "fine", "plain")}


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_distances_and_statistics(run, folders, tmp_path):
    near = run(main, folders["coarse"], "--reference", folders["fine"], "--out", tmp_path / "near")
    assert near.status == 0, near.err
    assert "fid (efficientnet-lite0)" in near.out and "4 images, 4 reference" in near.out
    assert "1 damaged images are left out" in near.err
    run(main, folders["plain"], "--reference", folders["fine"], "--out", tmp_path / "far")
    scores = {name: results(tmp_path / name)["scores"]["efficientnet-lite0"] for name in ("near", "far")}
    assert set(scores["near"]) == {"fid", "kid", "kid_std", "precision", "recall"}
    assert scores["near"]["fid"] < scores["far"]["fid"]
    assert results(tmp_path / "near")["damaged"] == [str(folders["coarse"] / "9.png")]

    run(main, folders["fine"], "--save-statistics", tmp_path / "fine.npz", "--out", tmp_path)
    run(main, folders["coarse"], "--reference", tmp_path / "fine.npz", "--out", tmp_path / "again")
    assert results(tmp_path / "again")["scores"]["efficientnet-lite0"] == scores["near"]


def test_clip_score_with_its_settings(run, folders, tmp_path):
    clip = save_clip(tmp_path / "clip")
    ended = run(main, folders["fine"], "--clip", clip, "--out", tmp_path)
    assert ended.status == 0 and "clip_score" in ended.out, ended.err
    result = results(tmp_path)
    assert result["settings"]["clip"] == str(clip) and 0 <= result["scores"]["clip_score"] <= 100
    assert result["command"].startswith("python -m scripts.image_metrics")
    assert f"| clip_score | {result['scores']['clip_score']:.4g} |" in results_page(find_files([tmp_path]))


def test_bad_input_is_one_line(refused, folders, tmp_path):
    assert "nothing to do" in refused(main, folders["fine"])
    assert "no folder" in refused(main, tmp_path / "nowhere", "--clip", "x/y")
    line = refused(main, folders["fine"], "--reference", folders["plain"], "--inception", tmp_path / "nowhere.pth")
    assert "no weights of FID's Inception" in line
