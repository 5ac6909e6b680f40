"""Captioned images of every source: captions and labels, damage, and an order that follows from (seed, position)."""

import json
import os
import random
import unicodedata
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from data_recipes.images import Folder, Mixed, Scenes, ShardImages, crop_around, open_images
from data_recipes.scenes.world import CLASSES, COLORS, SKILLS, is_held_out
from tests.shard_files import write_tar


def encoded(color: str, kind: str = "PNG") -> bytes:
    data = BytesIO()
    Image.new("RGB", (24, 20), color).save(data, kind)
    return data.getvalue()


def put(file: Path, content: bytes | str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def told(source, index: int) -> tuple[str, str]:
    """Caption and label."""
    return source[index][1:3]


# ---- a folder


@pytest.fixture
def folder(tmp_path) -> Path:
    put(tmp_path / "plain.png", encoded("red"))
    put(tmp_path / "dots.v2.png", encoded("green"))
    put(tmp_path / "dots.v2.txt", "  a green card\n")
    put(tmp_path / "v1.0" / "red_panda" / "x.y.JPEG", encoded("blue", "JPEG"))
    put(tmp_path / "v1.0" / "red_panda" / "z.webp", encoded("gray", "WEBP"))
    put(tmp_path / "v1.0" / "red_panda" / "z.txt", "two grays")
    put(tmp_path / "notes.md", "no image")
    put(tmp_path / "._plain.png", "what macOS leaves")
    return tmp_path


def test_captions_and_labels_of_a_folder(folder):
    source = open_images(str(folder))
    names = [Path(source[index].name).relative_to(folder).as_posix() for index in range(len(source))]
    assert names == ["dots.v2.png", "plain.png", "v1.0/red_panda/x.y.JPEG", "v1.0/red_panda/z.webp"]
    expected = [("a green card", ""), ("", ""), ("a photo of red panda", "red panda"), ("two grays", "")]
    assert [told(source, index) for index in range(4)] == expected
    assert source[1].image.getpixel((5, 5)) == (255, 0, 0) and source[1].image.size == (24, 20)


def test_metadata_comes_before_what_lies_beside_the_image(folder):
    rows = [
        {"file_name": "dots.v2.png", "text": "from metadata"},
        {"file_name": "v1.0/red_panda/x.y.JPEG", "text": "b"},
    ]
    put(folder / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    source = Folder(folder)
    assert [told(source, index) for index in (0, 2, 3)] == [("from metadata", ""), ("b", ""), ("two grays", "")]


@pytest.mark.parametrize("line", ['{"file_name": "plain.png"}', "[1]", '{"file_name"'])
def test_the_wrong_line_of_metadata_is_named(folder, line):
    put(folder / "metadata.jsonl", f'{{"file_name": "plain.png", "text": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match="metadata.jsonl, line 2: not"):
        Folder(folder)


def test_a_damaged_file_is_named(folder):
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    noise.save(folder / "cut.jpg")
    put(folder / "cut.jpg", (folder / "cut.jpg").read_bytes()[:900])
    put(folder / "text.png", "no image")
    source = Folder(folder)
    for index, name in ((0, "cut.jpg"), (3, "text.png")):
        with pytest.raises(ValueError, match=f"cannot read .*{name} as an image"):
            source[index]
    assert source[2].image.size == (24, 20)


def test_what_holds_no_images_is_told(tmp_path):
    with pytest.raises(ValueError, match="no images in .*; known are jpg, jpeg, png, webp"):
        open_images(str(tmp_path))
    with pytest.raises(ValueError, match="no images at 'nowhere': give 'scenes', a folder, or shards"):
        open_images("nowhere")


def test_the_order_of_a_folder(folder):
    order = Folder(folder).order(5)
    epochs = [[order[4 * epoch + place] for place in range(4)] for epoch in range(8)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs) and len(set(map(tuple, epochs))) > 1
    assert [Folder(folder).order(5)[position] for position in range(4)] == epochs[0]


def test_a_fingerprint_tells_another_file(folder):
    before = json.dumps(Folder(folder).fingerprint())
    assert json.dumps(Folder(folder).fingerprint()) == before
    put(folder / "plain.png", encoded("yellow") + b" ")
    assert json.dumps(Folder(folder).fingerprint()) != before


def captions(folder: Path) -> dict[str, str]:
    source = Folder(folder)
    return {Path(source.files[n]).relative_to(folder).as_posix(): source.caption(n)[0] for n in range(len(source))}


def rows(*pairs: tuple, **options) -> str:
    lines = [json.dumps({"file_name": name, "text": text}, ensure_ascii=False) for name, text in pairs]
    return "\n".join(lines)


def test_metadata_of_a_sub_folder_names_files_from_there(tmp_path):
    for name in ("train/1.png", "train/deep/2.png", "test/1.png", "0.png"):
        put(tmp_path / name, encoded("red"))
    put(tmp_path / "train" / "metadata.jsonl", rows(("1.png", "one"), ("deep/2.png", "two")))
    put(tmp_path / "test" / "metadata.csv", 'file_name,text\n1.png,"a test, quoted"\n')
    put(tmp_path / "metadata.jsonl", rows(("0.png", "zero")))
    expected = {"0.png": "zero", "train/1.png": "one", "train/deep/2.png": "two", "test/1.png": "a test, quoted"}
    assert captions(tmp_path) == expected


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["./sub/é.PNG", "sub\\é.PNG", "sub//é.PNG"])
def test_names_in_metadata_may_be_written_otherwise(tmp_path, name, form):
    put(tmp_path / "sub" / unicodedata.normalize(form, "é.PNG"), encoded("red"))
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    put(tmp_path / "metadata.jsonl", rows((unicodedata.normalize(other, name), "found")))
    assert [*captions(tmp_path).values()] == ["found"]


def test_texts_beside_images_are_matched_in_any_form(tmp_path):
    for image, text in (("a.PNG", "a.TXT"), (unicodedata.normalize("NFD", "é.png"), "é.txt")):
        put(tmp_path / image, encoded("red"))
        put(tmp_path / text, b"\xef\xbb\xbf caption\r\n")
    assert [*captions(tmp_path).values()] == ["caption", "caption"]


def test_lines_of_metadata_without_an_image_are_named(tmp_path):
    put(tmp_path / "dogs" / "1.png", encoded("red"))
    put(tmp_path / "metadata.jsonl", rows(("1.png", "one"), ("dogs/2.png", "two")))
    source = Folder(tmp_path)
    note = f"2 lines of metadata name no image that is there, e.g. {tmp_path}/metadata.jsonl, line 1: 1.png"
    assert note in source.notes and source.caption(0) == ("a photo of dogs", "dogs")


def test_metadata_with_a_mark_blank_lines_and_separators_inside_texts(tmp_path):
    put(tmp_path / "1.png", encoded("red"))
    line = rows(("1.png", "one\u2028two\x85three"))
    put(tmp_path / "metadata.jsonl", b"\xef\xbb\xbf" + f"{line}\r\n\r\n".encode())
    assert captions(tmp_path) == {"1.png": "one\u2028two\x85three"}


@pytest.mark.parametrize("caption", [None, {"en": "a dog"}, 5, True, [], [None], ["a dog", 5], [["a dog"]]])
def test_captions_that_are_no_text_make_bad_samples(tmp_path, caption):
    put(tmp_path / "1.png", encoded("red"))
    put(tmp_path / "metadata.jsonl", rows(("1.png", caption)))
    with pytest.raises(ValueError, match=f"{tmp_path}/1.png: its caption is .*; give a text, or a list of texts"):
        Folder(tmp_path)[0]
    shard = write_tar(
        tmp_path / "0.tar", {"1.png": encoded("red"), "1.json": json.dumps({"caption": caption}).encode()}
    )
    with pytest.raises(ValueError, match="0.tar, 1: its caption is .*; give a text, or a list of texts"):
        ShardImages(str(shard))[0]


def test_one_of_several_captions_is_picked_always_the_same(tmp_path):
    names = [f"{number}.png" for number in range(30)]
    for name in names:
        put(tmp_path / name, encoded("red"))
    put(tmp_path / "metadata.jsonl", rows(*((name, ["a", "b ", " "]) for name in names)))
    listed = captions(tmp_path)
    assert set(listed.values()) == {"a", "b"} and captions(tmp_path) == listed
    put(tmp_path / "metadata.jsonl", rows(*((name, text) for text in "ab" for name in names)))
    assert set(captions(tmp_path).values()) == {"a", "b"}  # a line each


@pytest.mark.parametrize("content", ["café".encode("latin-1"), "hello".encode("utf-16-le")])
def test_captions_that_are_no_utf_8_make_bad_samples(tmp_path, content):
    put(tmp_path / "1.png", encoded("red"))
    put(tmp_path / "1.txt", content)
    with pytest.raises(ValueError, match="1.png: .*1.txt is no text that can be read"):
        Folder(tmp_path)[0]
    put(tmp_path / "1.txt", "café".encode("utf-16"))
    assert Folder(tmp_path)[0].caption == "café"
    shard = write_tar(tmp_path / "0.tar", {"1.png": encoded("red"), "1.txt": content})
    with pytest.raises(ValueError, match="0.tar, 1: its txt is no text that can be read"):
        ShardImages(str(shard))[0]


def test_other_metadata_is_refused_by_name(tmp_path):
    put(tmp_path / "1.png", encoded("red"))
    put(tmp_path / "metadata.parquet", b"PAR1")
    with pytest.raises(ValueError, match="metadata.parquet is not read: write it as metadata.jsonl"):
        Folder(tmp_path)


def test_a_folder_says_what_it_took_and_what_it_left_out(tmp_path):
    for name in ("1.png", "2.PNG", "dogs/3.gif", "4.bmp", ".hidden/5.png", "6.heic", "7.HEIC", "8.md", "9"):
        put(tmp_path / name, encoded("red"))
    put(tmp_path / "2.txt", "two")
    put(tmp_path / "nobody.txt", "no image")
    put(tmp_path / "metadata.jsonl", rows(("1.png", "one")))
    os.symlink(tmp_path / "dogs", tmp_path / "linked")
    assert Folder(tmp_path).notes == [
        f"{tmp_path}: 4 images; captions: 1 in metadata, 1 in .txt files, 1 none, 1 by the folder's name",
        f"{tmp_path}/linked is a link to a folder that is read already",
        f"{tmp_path}: left out, neither images of a known kind nor their captions: "
        "2 .heic, 1 .md, 1 without an ending, 1 .txt",
    ]


def test_a_folder_with_pattern_characters_and_links(tmp_path):
    put(tmp_path / "photos [1]*" / "cats" / "1.png", encoded("red"))
    put(tmp_path / "elsewhere" / "2.png", encoded("red"))
    os.symlink(tmp_path / "elsewhere", tmp_path / "photos [1]*" / "dogs")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "photos [1]*" / "gone.png")
    source = open_images(str(tmp_path / "photos [1]*"))
    assert [source.caption(n)[0] for n in range(3)] == ["a photo of cats", "a photo of dogs", ""]
    with pytest.raises(ValueError, match="no image file at .*gone.png"):
        source[2]
    assert len(source.fingerprint()) == 2


def test_a_fingerprint_tells_another_caption(folder):
    before = Folder(folder).fingerprint()
    put(folder / "dots.v2.txt", "another caption")
    assert Folder(folder).fingerprint() != before


# ---- shards


@pytest.fixture
def shard(tmp_path) -> Path:
    image = encoded("red")
    files = {
        "0.png": image, "0.txt": b" from txt\n", "0.json": b'{"caption": "from json"}', "0.cls": b"7\n",
        "1.png": image, "1.json": b'{"caption": null, "text": "its text"}',
        "2.png": image, "2.cls": b"red panda",
        "3.png": image,
        "4.jpg": encoded("red", "JPEG")[:300], "4.txt": b"cut",
        "5.txt": b"no image",
        "6.png": image, "6.json": b'["no object"]',
        "7.png": image, "7.json": b"{",
    }  # fmt: skip
    return write_tar(tmp_path / "shard-000.tar", files)


def test_captions_and_labels_of_shards(shard):
    source = open_images(str(shard.with_name("shard-{000..000}.tar")))
    assert isinstance(source, ShardImages) and len(source) == 8
    expected = [("from txt", "7"), ("its text", ""), ("a photo of red panda", "red panda"), ("", "")]
    assert [told(source, index) for index in range(4)] == expected
    assert source[0].image.getpixel((5, 5)) == (255, 0, 0) and source[0].name == f"file://{shard}, 0"


def test_a_damaged_sample_is_named(shard):
    source = open_images([str(shard)])
    for index, message in ((4, "cannot read .*, 4 as an image"), (5, ", 5: no image; known are jpg")):
        with pytest.raises(ValueError, match=message):
            source[index]
    for index in (6, 7):
        with pytest.raises(ValueError, match=f"{shard}, {index}: its json is damaged"):
            source[index]


def test_a_damaged_shard_is_named(shard, tmp_path):
    put(tmp_path / "text.tar", "no tar")
    source = open_images([str(shard), str(tmp_path / "text.tar")])
    assert len(source) == 8 and len(source.damages) == 1 and "text.tar: cannot be read" in source.damages[0]


def test_the_order_of_shards_is_over_all_of_them(shard, tmp_path):
    other = write_tar(tmp_path / "shard-001.tar", {f"{n}.png": encoded("blue") for n in range(5)})
    source = open_images([str(shard), str(other)])
    assert source.damages == []
    assert list(source.counts()) == [8, 5]
    order = source.order(0)
    assert sorted(order[place] for place in range(13, 26)) == list(range(13))


# ---- scenes


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes("shapes")


def test_the_label_of_a_scene_is_its_one_thing(scenes):
    for index in range(60):
        scene, sample = scenes.world.scene(index), scenes[index]
        assert sample.label == (scene.things[0].name if len(scene.things) == 1 else "")
        assert sample.caption and sample.image == scenes.world.render(scene)


def test_scenes_of_one_skill_and_split():
    held_out = Scenes("shapes", "held_out", skill="single_object")
    for index in range(20):
        [thing] = held_out.world.scene(index, "held_out", "single_object").things
        assert held_out[index].label == thing.name in CLASSES
        assert is_held_out(("color", thing.name, thing.color))
    fingerprints = [
        Scenes("shapes", split, skill=skill).fingerprint() for split in ("train", "held_out") for skill in SKILLS
    ]
    assert len({json.dumps(one) for one in fingerprints}) == 2 * len(SKILLS)


def test_most_captions_name_no_color(scenes):
    single = Scenes("shapes", skill="colors")
    named = [any(color in single[index].caption for color in COLORS) for index in range(200)]
    assert 40 < sum(named) < 120  # 0.4 of them, but for a background's colour


def test_a_crop_is_about_one_thing():
    scenes = Scenes("shapes", crop=64)
    for index in range(40):
        sample = scenes[index]
        assert sample.image.size == (64, 64) and sample.label in CLASSES and sample == scenes[index]


def test_the_thing_of_a_crop_has_its_centre_in_the_middle_half(scenes):
    for seed in range(40):
        [thing] = scenes.world.scene(seed, skill="single_object").things
        x1, y1, x2, y2 = thing.box
        canvas = Image.new("L", (128, 128))
        canvas.putpixel(((x1 + x2) // 2, (y1 + y2) // 2), 255)
        crop = crop_around(canvas, thing, 64, random.Random(seed))
        left, top, *_ = crop.getbbox()
        at_edge = min(x1 + x2, y1 + y2) < 96 or max(x1 + x2, y1 + y2) > 160
        assert at_edge or (15 <= left <= 48 and 15 <= top <= 48)


def test_the_order_of_scenes_never_repeats(scenes):
    first, second = scenes.order(0), scenes.order(1)
    assert [first[place] for place in (0, 1, 10**6)] == [0, 1, 10**6]
    assert first[10**6] < second[0] and second[5] == scenes.order(1)[5]


def test_open_images_hands_on_what_is_of_the_scenes():
    source = open_images("scenes", "shapes", "held_out", 64, "counting")
    assert source.fingerprint() == ["scenes", "shapes", "held_out", 64, "counting"]


def test_of_mixed_sources_a_share_is_of_the_second_and_each_position_is_always_the_same(tmp_path):
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    mixed = Mixed(Scenes("shapes"), Folder(tmp_path), share=0.25)
    order, again = mixed.order(seed=1), mixed.order(seed=1)
    indices = [order[position] for position in range(2000)]
    photos = [index for index in indices if index < 3]
    assert len(photos) / 2000 == pytest.approx(0.25, abs=0.03) and set(photos) == {0, 1, 2}
    assert [again[position] for position in (1999, 5, 0)] == [indices[1999], indices[5], indices[0]]
    assert mixed[photos[0]].name.endswith(f"{photos[0]}.png")
    scene = next(index for index in indices if index >= 3)
    assert mixed[scene].name == f"train scene {scene - 3}" and scene < len(mixed)
    assert mixed.fingerprint() != Mixed(Scenes("shapes"), Folder(tmp_path), share=0.5).fingerprint()
