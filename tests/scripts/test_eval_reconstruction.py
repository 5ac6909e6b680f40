"""scripts.eval_reconstruction: results, their file, several processes, and bad input."""

import json
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

from eval.images import image_pieces
from eval.results import read_results, section
from scripts.eval_reconstruction import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five parts of a photograph, and a damaged file."""
    folder, photo = tmp_path_factory.mktemp("photos"), Image.fromarray(data.chelsea())
    for place in range(5):
        photo.crop((60 * place, 0, 60 * place + 50, 64)).save(folder / f"{place}.png")
    (folder / "damaged.jpg").write_bytes(b"damaged")
    return folder


def test_the_report(run, folder, tiny_folder, tmp_path):
    ended = run(main, folder, "--model", tiny_folder, "--out", tmp_path, "--detail")
    assert ended.status == 0, ended.err
    assert "5 images" in ended.out and "rfid_efficientnet_lite0" in ended.out and "perplexity.1" in ended.out
    assert (
        ended.err.startswith("note: 1 that cannot be used are left out, e.g. cannot read")
        and "damaged.jpg" in ended.err
    )
    result = read_results(tmp_path / "results.json")
    assert result["command"].startswith(f"python -m scripts.eval_reconstruction {folder}")
    assert result["model"] == str(tiny_folder) and len(result["model_hash"]) == 12 and "torch" in result["versions"]
    expected = {"data": str(folder), "limit": None, "features": "efficientnet-lite0", "image_size": 32}
    assert result["settings"].items() >= expected.items() and "torchmetrics" in result["settings"]
    assert result["images"] == 5 and len(result["left_out"]) == 1
    assert all(0 <= result["scores"][kind]["12"] < 0.5 for kind in ("text", "faces"))
    page = "\n".join(section(tmp_path / "results.json", result))
    assert "## eval_reconstruction" in page and "| usage.0 |" in page and "| rfid_efficientnet_lite0 |" in page


def test_two_processes_give_the_numbers_of_one(run, folder, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(image_pieces, "PIECE", 1)
    words = (folder, "--model", tiny_folder, "--limit", 2, "--max-bad", 0, "--out")
    run(main, *words, tmp_path / "one")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    first = run(main, *words, tmp_path / "two")
    assert first.status == 0 and "has done its share" in first.out and not (tmp_path / "two" / "results.json").exists()
    monkeypatch.setenv("RANK", "0")
    run(main, *words, tmp_path / "two")
    one, two = (json.loads((tmp_path / out / "results.json").read_text()) for out in ("one", "two"))
    assert one["scores"] == two["scores"] and one["images"] == two["images"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "no images at 'nowhere'"),
        (["scenes"], "the scenes have no end: say how many with --limit"),
        (["{folder}", "--limit", "0"], "--limit 0 is below 1"),
        (["{folder}", "--batch-size", "-1"], "--batch-size -1 is below 1"),
        (["{folder}", "--perturbed", "1.5"], "--perturbed 1.5 is outside 0 to 1"),
        (["{folder}", "--max-bad", "-1"], "--max-bad -1 is below 0"),
        (["{folder}", "--model", "no_such_model"], "unknown model 'no_such_model'"),
        (["{folder}", "--lpips", "nowhere.pth"], "no weights of LPIPS"),
        (["{folder}", "--inception", "nowhere.pth"], "no weights of FID's Inception"),
        (["{folder}", "--max-bad", "0"], "1 images cannot be used, --max-bad allows 0"),
        (["{folder}/*.tar", "{folder}/*.tar"], "no shard at"),
    ],
)
def test_bad_input_is_one_line(refused, folder, tiny_folder, tmp_path, words, told):
    words = [word.format(folder=folder) for word in words]
    model = [] if "--model" in words else ["--model", tiny_folder]
    assert told in refused(main, *words, *model, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "results.json").exists()
