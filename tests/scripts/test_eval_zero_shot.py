"""scripts.eval_zero_shot: results, their file, sources of classes and labels, and bad input."""

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from data_recipes.scenes.world import World
from eval.results import read_results
from scripts.eval_zero_shot import main
from tests.shard_files import write_tar

COLORS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The same three images as a folder and as a shard; class names; templates."""
    root, files = tmp_path_factory.mktemp("data"), {}
    for place, color in enumerate(COLORS):
        (root / "photos" / color).mkdir(parents=True)
        image, content = Image.new("RGB", (40, 40), color), BytesIO()
        image.save(root / "photos" / color / "0.png")
        image.save(content, "PNG")
        files |= {f"{place}.png": content.getvalue(), f"{place}.cls": str(place).encode()}
    write_tar(root / "photos.tar", files)
    (root / "names.txt").write_text("\n".join(COLORS))
    (root / "templates.txt").write_text("a {} thing\n{}")
    return root


def test_the_report(run, data, tiny_folder, tmp_path):
    words = ("--model", tiny_folder, "--classes", data / "names.txt", "--templates", data / "templates.txt")
    ended = run(main, data / "photos", *words, "--out", tmp_path / "folder")
    assert ended.status == 0 and "3 images" in ended.out and "top_1" in ended.out, ended.err
    result = read_results(tmp_path / "folder" / "results.json")
    assert set(result["scores"]) == {"top_1", "top_5"} and result["scores"]["top_5"] == 1
    settings = {"classes": str(data / "names.txt"), "class_count": 3, "template_count": 2, "image_size": 32}
    assert result["settings"].items() >= settings.items()
    assert result["model"] == str(tiny_folder) and len(result["model_hash"]) == 12
    (data / "empty.tar").touch()
    ended = run(main, data / "photos.tar", data / "empty.tar", *words, "--out", tmp_path / "shards")
    assert ended.status == 0 and "note: 1 that cannot be used are left out" in ended.err and "empty.tar" in ended.err
    shards = read_results(tmp_path / "shards" / "results.json")
    assert shards["scores"] == result["scores"] and len(shards["left_out"]) == 1


def test_a_text_tokenizer_from_another_folder(run, refused, data, tiny_model, tiny_folder, tmp_path):
    tiny_model[0].image_tokenizer.save_pretrained(tmp_path / "alone")
    words = (data / "photos", "--model", tmp_path / "alone", "--classes", data / "names.txt", "--out", tmp_path / "out")
    assert f"{tmp_path / 'alone'} holds no text tokenizer" in refused(main, *words)
    assert run(main, *words, "--text-tokenizer", tiny_folder).status == 0


def test_scenes_of_one_thing(run, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("data_recipes.images.World", lambda _: World("shapes"))  # needs no font
    ended = run(main, "scenes", "--model", tiny_folder, "--limit", 12, "--out", tmp_path)
    assert ended.status == 0 and "12 images" in ended.out, ended.err
    assert read_results(tmp_path / "results.json")["settings"]["class_count"] == 70


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "which classes are in {data}/photos? Name them with --classes FILE or --imagenet"),
        (["--imagenet", "--classes", "names.txt"], "or --imagenet alone"),
        (["--templates", "templates.txt"], "give --classes and perhaps --templates"),
        (["--classes", "nowhere.txt"], "nowhere.txt: No such file"),
    ],
)
def test_bad_input_is_one_line(refused, data, tiny_folder, tmp_path, words, told):
    line = refused(main, data / "photos", "--model", tiny_folder, "--out", tmp_path / "out", *words)
    assert told.format(data=data) in line
