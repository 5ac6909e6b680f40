"""scripts.extract_codes: shards with codes are those with images, encoded; and scenes."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from data_recipes.messages import from_files
from data_recipes.shards import Shards
from scripts.extract_codes import main
from tests.shard_files import IMAGE, png, talk, text, write_shard
from tokenizer.weights import codes_hash
from training.data.mixture import ImageForm


def picture(place: int) -> tuple[str, bytes]:
    return png(Image.radial_gradient("L").rotate(10 * place).resize((40, 24)).convert("RGB"))


@pytest.fixture
def shards(tmp_path) -> Path:
    """Two shards: a chat about two images, one without, and one that is cut off."""
    asked = [IMAGE, text("which?")]
    for shard in range(2):
        first, second = picture(shard), picture(shard + 5)
        samples = {"a": talk(asked, [IMAGE], first, second), "b": talk("hello", "hi")}
        if shard:
            samples["c"] = talk(asked, [IMAGE], first, ("png", second[1][:-40]))
        write_shard(tmp_path / "shards" / f"{shard:06d}.tar", samples)
    return tmp_path / "shards"


def test_codes_are_those_that_the_model_would_see(run, tiny_model, tiny_folder, shards, tmp_path):
    model, _ = tiny_model
    ended = run(main, "--image-tokenizer", tiny_folder, "--shards", f"{shards}/*.tar", "--out", tmp_path / "codes")
    assert ended.status == 0, ended.err
    assert "2 of 2 shards done, 1 samples left out" in ended.out
    assert "000001.tar, c: cannot read 1.png as an image" in ended.err
    before, after = Shards(f"{shards}/*.tar"), Shards(f"{tmp_path}/codes/*.tar")
    form = ImageForm(model.image_tokenizer, "mllm")
    assert len(after) == 4
    for index in range(4):
        was, now = from_files(before[index]), from_files(after[index])
        assert now.codes_of == {"image_tokenizer": codes_hash(model.image_tokenizer), "template": "mllm"}
        for image, codes in zip(was.images, now.images, strict=True):
            codes_LK = np.load(io.BytesIO(codes))
            assert codes_LK.dtype == np.uint16
            expected = model.image_tokenizer.encode([form.pixels(Image.open(io.BytesIO(image)))])[0]
            assert torch.equal(torch.from_numpy(codes_LK.astype(np.int64)), expected)


def test_it_resumes_and_processes_share_the_shards(run, tiny_folder, shards, tmp_path, monkeypatch):
    words = ["--image-tokenizer", str(tiny_folder), "--shards", f"{shards}/*.tar", "--out", str(tmp_path / "codes")]
    run(main, *words)
    before = {file.name: file.read_bytes() for file in (tmp_path / "codes").iterdir()}
    (tmp_path / "codes" / "000000.tar").unlink()
    run(main, *words)
    assert {file.name: file.read_bytes() for file in (tmp_path / "codes").iterdir()} == before
    shutil.rmtree(tmp_path / "codes")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        assert f"{rank + 1} of 2 shards done" in run(main, *words).out
    assert {file.name: file.read_bytes() for file in (tmp_path / "codes").iterdir()} == before


def test_scenes(run, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.scene_samples.CHUNK", 32)
    options = ["--scenes", 33, "--artwork", "shapes", "--out", tmp_path / "codes"]
    ended = run(main, "--image-tokenizer", tiny_folder, *options)
    assert ended.status == 0, ended.err
    files = sorted((tmp_path / "codes").iterdir())
    assert [file.name for file in files] == ["codes_00000.safetensors", "codes_00001.safetensors"]
    with safe_open(files[0], "pt") as file:
        assert file.get_tensor("codes_NLK").shape == (32, 4, 2)


def test_what_cannot_be_extracted_is_one_line(refused, run, tiny_folder, shards, tmp_path):
    words = ["--image-tokenizer", tiny_folder, "--out", tmp_path / "codes"]
    assert "no shard at" in refused(main, *words, "--shards", tmp_path / "none.tar")
    shutil.copytree(shards, tmp_path / "more")
    same = refused(main, *words, "--shards", f"{shards}/*.tar", f"{tmp_path}/more/*.tar")
    assert "several shards are called 000000.tar" in same
    run(main, *words, "--shards", f"{shards}/*.tar")
    again = ["--image-tokenizer", tiny_folder, "--out", tmp_path / "again", "--max-bad", 0]
    ended = run(main, *again, "--shards", f"{tmp_path}/codes/*.tar")
    assert ended.status == 2 and "it holds codes already" in ended.err
