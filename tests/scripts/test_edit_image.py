"""scripts.edit_image: what is written, going on where a run stopped, and bad input."""

import json

import pytest
import torch
from PIL import Image

from eval import drawn_folder
from mllm import edit_images
from scripts import edit_image
from scripts._errors import plain
from scripts.edit_image import main


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "picture.png"
    Image.linear_gradient("L").resize((40, 48)).convert("RGB").save(file)
    return file


@pytest.fixture
def mask(tmp_path):
    """Transparent on the left."""
    file, image = tmp_path / "mask.png", Image.new("RGBA", (40, 48), "black")
    image.paste((0, 0, 0, 0), (0, 0, 20, 48))
    image.save(file)
    return file


@pytest.fixture
def editor(make_tiny_model, monkeypatch):
    """A model that draws whatever it is asked, in place of the one that is loaded."""
    model, processor = make_tiny_model()
    begin = torch.tensor([processor.boi_id])
    model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, begin, 100.0))
    monkeypatch.setattr(edit_image, "load_model", lambda *_: (model, processor))
    return model, processor


@pytest.fixture
def edit(run, picture, tmp_path):
    """Runs the script into a folder of tmp_path; -> that folder."""

    def run_edit(*words, out="out", prompt="make it blue"):
        ended = run(main, picture, prompt, "--out", tmp_path / out, *words)
        assert ended.status == 0, ended.err
        return tmp_path / out

    return run_edit


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def pictures(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("0*.png")}


def test_images_and_metadata(editor, edit, picture, mask):
    folder = edit("-n", 3, "--seed", 5, "--mask", mask, "--cfg-scale", 3, "--image-cfg-scale", 1.2)
    names = ["0000.png", "0001.png", "0002.png"]
    assert sorted(file.name for file in folder.iterdir()) == [*names, "grid.png", "metadata.jsonl"]
    for index, line in enumerate(lines(folder)):
        assert (line["file"], line["seed"], line["prompt"]) == (names[index], 5 + index, "make it blue")
        assert (line["image"], line["mask"], line["image_cfg_scale"]) == ("picture.png", "mask.png", 1.2)
        options = {"cfg_scale": 3.0, "image_cfg_scale": 1.2}
        opened = Image.open(mask).copy()
        [alone] = edit_images(*editor, picture, "make it blue", opened, seeds=5 + index, **options)
        assert Image.open(folder / names[index]).copy().tobytes() == alone.tobytes()


def test_the_same_command_goes_on(editor, edit, monkeypatch):
    whole = edit("-n", 5, "--batch-size", 2, out="whole")
    folder = edit("-n", 2)
    listed = folder / "metadata.jsonl"
    listed.write_text(listed.read_text()[:-20])
    (folder / "0000.png").unlink()
    made = []
    make = drawn_folder.edit_images

    def counted(model, processor, images, prompts, masks, seeds, *rest, **options):
        made.extend(seeds)
        return make(model, processor, images, prompts, masks, seeds, *rest, **options)

    monkeypatch.setattr(drawn_folder, "edit_images", counted)
    edit("-n", 5)
    assert made == [0, 2, 3, 4] and pictures(folder) == pictures(whole)
    assert sorted(lines(folder), key=str) == sorted(lines(whole), key=str)


def test_words_in_place_of_an_edit_are_printed_and_listed(run, tiny_folder, picture, tmp_path):
    words = (picture, "make it blue", "--model", tiny_folder, "--out", tmp_path / "out", "-n", 2)
    first = run(main, *words)
    [line, other] = lines(tmp_path / "out")
    said = plain(" ".join(line["answer"].split()))
    assert first.status == 0 and first.err == f"note: the picture is as it was: {said}\n"
    assert other["answer"] == line["answer"] and "2 images made" in first.out
    assert Image.open(tmp_path / "out/0000.png").tobytes() == Image.open(picture).tobytes()
    (tmp_path / "out/metadata.jsonl").unlink()  # each image has its line, too
    again = run(main, *words)
    assert again.err == first.err and "0 images made" in again.out and lines(tmp_path / "out") == [line, other]


def test_two_pictures_never_share_a_folder(editor, edit, refused, picture, mask):
    folder = edit()
    before = pictures(folder)
    assert "mask None, now it is 'mask.png'" in refused(main, picture, "make it blue", "--out", folder, "--mask", mask)
    other = edit("--mask", mask, out="other")
    assert "mask 'mask.png', now it is None" in refused(main, picture, "make it blue", "--out", other)
    Image.new("RGB", (40, 48)).save(picture)
    assert "image_sha256" in refused(main, picture, "make it blue", "--out", folder)
    assert pictures(folder) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "the following arguments are required: IMAGE, PROMPT"),
        (["x.png", "no_such.png", "make it blue"], "unrecognized arguments: make it blue"),
        (["no_such.png", "make it blue"], "no image file at no_such.png"),
        (["PICTURE"], "the following arguments are required: PROMPT"),
        (["PICTURE", " "], "the prompt is empty: say what to change"),
        (["PICTURE", "x", "--mask", "no_such.png"], "no image file at no_such.png"),
        (["PICTURE", "x", "-n", "0"], "-n 0 is below 1"),
        (["PICTURE", "x", "--batch-size", "0"], "--batch-size 0 is below 1"),
        (["PICTURE", "x", "--seed", "-1"], "seed -1 is outside"),
        (["PICTURE", "x", "--image-cfg-scale", "0"], "image_cfg_scale 0.0 is below 1"),
        (["PICTURE", "x", "--cfg-interval", "0.5", "1"], "cfg_interval of an edit begins at 0"),
    ],
)
def test_wrong_options_are_refused_before_loading_a_model(refused, monkeypatch, picture, tmp_path, words, told):
    monkeypatch.setattr(edit_image, "load_model", None)
    words = [str(picture) if word == "PICTURE" else word for word in words]
    assert told in refused(main, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_and_masks_that_cannot_be_used(editor, refused, picture, tmp_path):
    def told(image=picture, mask=None):
        words = ("--mask", mask) if mask else ()
        return refused(main, image, "make it blue", "--out", tmp_path / "out", *words)

    frames = [Image.new("RGB", (40, 48), color) for color in ("red", "blue", "green")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert "film.gif is an animation of 3 frames: give one still picture" in told(tmp_path / "film.gif")
    (tmp_path / "text.png").write_text("hello")
    assert "text.png as an image" in told(tmp_path / "text.png")
    assert "text.png as an image" in told(mask=tmp_path / "text.png")
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    assert "huge.png has 9000 x 9000 pixels; at most 64,000,000 are read" in told(tmp_path / "huge.png")
    assert "the mask has no alpha channel" in told(mask=picture)
    Image.new("RGBA", (8, 8)).save(tmp_path / "small.png")
    assert "the mask has 8 x 8 pixels, its picture 40 x 48: make them equal" in told(mask=tmp_path / "small.png")
    assert not (tmp_path / "out").exists()
