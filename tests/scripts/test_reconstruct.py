"""scripts.reconstruct: pairs of images and their scores, sizes, names, models of both kinds, and bad input."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from eval.images.similarity import psnr, ssim
from scripts import reconstruct
from scripts.reconstruct import main
from tokenizer import SIZES, ImageTokenizer


@pytest.fixture(scope="module")
def image_tokenizer() -> ImageTokenizer:
    """For 128-pixel images; larger weights than fresh ones have, so that the images are no plain grey."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ImageTokenizer(replace(SIZES["tiny"], image_size=128)).eval()
        with torch.no_grad():
            for weight in model.decoder.parameters():
                weight.mul_(2)
        return model


@pytest.fixture(scope="module")
def folder(image_tokenizer, tmp_path_factory):
    """The same, as `--model` takes it."""
    folder = tmp_path_factory.mktemp("image_tokenizer")
    image_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> dict:
    """Name -> file of scikit-image's photographs: 512 x 512, 451 x 300 and 600 x 400 pixels, and one of 128 x 128."""
    folder = tmp_path_factory.mktemp("photos")
    images = {name: Image.fromarray(getattr(data, name)()) for name in ("astronaut", "chelsea", "coffee")}
    images["small"] = images["astronaut"].crop((160, 0, 288, 128))
    for name, image in images.items():
        image.save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in images}


@pytest.fixture
def run_into(run, folder, tmp_path):
    """Runs the script into tmp_path / "out"; -> (the end, metrics.json)."""

    def run_script(*words):
        ended = run(main, *words, "--model", folder, "--out", tmp_path / "out")
        assert ended.status == 0, ended.err
        return ended, json.loads((tmp_path / "out" / "metrics.json").read_text())

    return run_script


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


# ---- what is written


def test_a_pair_and_its_scores(run_into, image_tokenizer, photos, tmp_path):
    ended, metrics = run_into(photos["small"])
    original = Image.open(photos["small"])
    expected = image_tokenizer.decode(image_tokenizer.encode([original]))[0]
    assert len(set(expected.tobytes())) > 10
    pair = Image.open(tmp_path / "out" / "small.png")
    assert pair.size == (256, 128)
    assert pair.crop((0, 0, 128, 128)).tobytes() == original.tobytes()
    assert pair.crop((128, 0, 256, 128)).tobytes() == expected.tobytes()
    scores = {"psnr": psnr(original, expected), "ssim": ssim(original, expected)}
    record = {"image": str(photos["small"]), "file": "small.png", "original_size": [128, 128], "size": [128, 128]}
    assert metrics["images"] == [{**record, **scores}] and metrics["mean"] == scores
    assert f"{scores['psnr']:.2f}" in ended.out and f"{scores['ssim']:.3f}" in ended.out and ended.err == ""
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["metrics.json", "small.png"]


def test_photographs_of_any_shape(run_into, photos, tmp_path):
    ended, metrics = run_into(photos["chelsea"], photos["coffee"], photos["astronaut"])
    sizes = {record["file"]: record["size"] for record in metrics["images"]}
    assert sizes == {"chelsea.png": [448, 304], "coffee.png": [608, 400], "astronaut.png": [512, 512]}
    assert Image.open(tmp_path / "out" / "chelsea.png").copy().size == (896, 304)
    notes = ended.err.splitlines()
    assert notes[0] == f"note: {photos['chelsea']} has 451 x 300 pixels, resized to 448 x 304"
    assert len(notes) == 2 and "astronaut" not in ended.err
    for name in ("psnr", "ssim"):
        assert metrics["mean"][name] == pytest.approx(np.mean([record[name] for record in metrics["images"]]))
    assert "mean" in ended.out


def test_size_is_the_short_side(run_into, photos, tmp_path):
    ended, metrics = run_into(photos["chelsea"], "--size", 64)
    assert metrics["images"][0]["size"] == [96, 64] and ended.err == "" and metrics["settings"]["size"] == 64
    whole = Image.open(photos["chelsea"]).resize((96, 64), Image.Resampling.BICUBIC)
    left = Image.open(tmp_path / "out" / "chelsea.png").crop((0, 0, 96, 64))
    assert np.abs(pixels(left) - pixels(whole)).max() == 0  # nothing was cut off


def test_size_enlarges_a_tiny_image(run_into, tmp_path):
    Image.new("RGB", (4, 6), "red").save(tmp_path / "dot.png")
    assert run_into(tmp_path / "dot.png", "--size", 32)[1]["images"][0]["size"] == [32, 48]


def test_names_that_come_twice(run_into, photos, tmp_path):
    for name, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16), colour).save(tmp_path / name / "small.jpg")
    others = [tmp_path / name / "small.jpg" for name in "ab"]
    _, metrics = run_into(photos["small"], *others, photos["small"])
    files = ["small.png", "small_2.png", "small_3.png", "small_4.png"]
    assert [record["file"] for record in metrics["images"]] == files
    first, red, blue, again = (Image.open(tmp_path / "out" / file) for file in files)
    assert first.tobytes() == again.tobytes()
    assert red.getpixel((8, 8))[0] > 200 and blue.getpixel((8, 8))[2] > 200


def test_a_whole_model_and_its_image_tokenizer_give_the_same(run, tiny_model, tiny_folder, photos, tmp_path):
    tiny_model[0].image_tokenizer.save_pretrained(tmp_path / "part")
    for model, out in ((tiny_folder, "whole"), (tmp_path / "part", "alone")):
        assert run(main, photos["small"], "--model", model, "--out", tmp_path / out).status == 0
    assert (tmp_path / "whole" / "small.png").read_bytes() == (tmp_path / "alone" / "small.png").read_bytes()
    whole, alone = (json.loads((tmp_path / out / "metrics.json").read_text()) for out in ("whole", "alone"))
    assert whole["settings"].pop("model") == str(tiny_folder) and alone["settings"].pop("model")
    assert whole == alone and len(whole["settings"]["image_tokenizer_hash"]) == 12


# ---- bad input


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(reconstruct, "load_image_tokenizer", None)


@pytest.mark.parametrize(
    ("size", "told"),
    [
        ("0", "--size 0 is not a positive multiple of 16"),
        ("-16", "--size -16 is not a positive multiple of 16"),
        ("100", "--size 100 is not a positive multiple of 16"),
        ("big", "--size: invalid int value: 'big'"),
        ("2048", "2048 x 2048, the limit is 2,097,152 pixels"),
    ],
)
def test_impossible_sizes(refused, no_model, photos, tmp_path, size, told):
    assert told in refused(main, photos["small"], "--size", size, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bad_image_is_told_before_anything_is_done(refused, no_model, photos, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (40, 15)).save(tmp_path / "flat.png")
    for name, told in (
        ("absent.png", f"no image file at {tmp_path / 'absent.png'}"),
        ("text.png", f"cannot read {tmp_path / 'text.png'} as an image"),
        ("flat.png", "flat.png has 40 x 15 pixels, each side needs 16: enlarge it with --size"),
    ):
        assert told in refused(main, photos["small"], tmp_path / name, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(refused, no_model, photos, tmp_path):
    for name in ("small.png", "metrics.json"):
        (tmp_path / name).write_text("mine")
        assert f"{tmp_path / name} is there already" in refused(main, photos["small"], "--out", tmp_path)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()


def test_an_output_folder_that_cannot_be_made(refused, no_model, photos):
    assert f"cannot write to {photos['small']}" in refused(main, photos["small"], "--out", photos["small"])


def test_models_that_are_none(refused, folder, photos, tmp_path):
    def told(model):
        return refused(main, photos["small"], "--model", model, "--out", tmp_path / "out")

    assert "unknown model 'no_such_model'" in told("no_such_model")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"classes": ["cat"]}')
    assert "holds no image tokenizer: its config.json has 'classes'" in told(other)
    config = json.loads((folder / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "width": 64}))
    (other / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert "weights and config disagree" in told(other)
    (other / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    assert f"cannot load model '{other}'" in told(other)
    assert not (tmp_path / "out").exists()
