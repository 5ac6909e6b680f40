"""Zero-shot classification: its numbers against a plain loop, classes, labels, text tokenizers, several processes."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_recipes.images import open_images
from data_recipes.scenes.world import CLASSES
from eval.images import image_pieces, zero_shot
from eval.images.image_pieces import Images
from eval.images.zero_shot import (
    Classes,
    evaluate_zero_shot,
    imagenet_classes,
    load_text_reader,
    ranks,
    read_classes,
    scene_classes,
    text_reader,
)
from mllm.text.ids import contrastive_ids, plan_token
from tokenizer import SIZES

NAMES = ["apple", "red panda", "bus", "cat", "dog", "oven", "sheep", "tie", "umbrella", "zebra", "car", "cup"]
SOME = Classes(NAMES, ["a photo of {a}", "the {}.", "{}"])


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(image_pieces, "PIECE", 4)
    monkeypatch.setattr(zero_shot, "CLASS_PIECE", 5)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two plain images of each class."""
    colors = np.random.default_rng(0).integers(0, 255, (2, len(NAMES), 3))
    for place, name in enumerate(NAMES):
        (tmp_path / "photos" / name.replace(" ", "_")).mkdir(parents=True)
        for row in range(2):
            image = Image.new("RGB", (40, 50), tuple(colors[row, place].tolist()))
            image.save(tmp_path / "photos" / name.replace(" ", "_") / f"{row}.png")
    return tmp_path / "photos"


@pytest.fixture
def image_tokenizer(tiny_model):
    return tiny_model[0].image_tokenizer


@pytest.fixture
def read_texts(image_tokenizer, tiny_folder):
    return load_text_reader(image_tokenizer.config, tiny_folder)


def images_of(folder: Path, **options) -> Images:
    source = open_images(str(folder))
    return Images(source, range(len(source)), **options)


# ---- numbers


def test_the_numbers_are_those_of_a_plain_loop(image_tokenizer, text_tokenizer, read_texts, folder, tmp_path):
    config, class_vectors = image_tokenizer.config, []
    with torch.no_grad():
        for name in NAMES:
            article = "an" if name[0] in "aeiou" else "a"
            texts = [f"a photo of {article} {name}", f"the {name}.", name]
            ids = [
                contrastive_ids(text_tokenizer, [text], config.text_context, config.text_vocab_size) for text in texts
            ]
            mean = sum(image_tokenizer.text_features(one)[0].double().numpy() for one in ids) / 3
            class_vectors.append(mean / np.sqrt(np.sum(mean**2)))
        first, among_five = 0, 0
        for file in folder.rglob("*.png"):
            features = image_tokenizer.image_features([Image.open(file)])[0].double().numpy()
            nearest = sorted(range(len(NAMES)), key=lambda c: -features @ class_vectors[c])
            truth = NAMES.index(file.parent.name.replace("_", " "))
            first, among_five = first + (nearest[0] == truth), among_five + (truth in nearest[:5])
    assert 0 < first < among_five < 24
    result = evaluate_zero_shot(image_tokenizer, read_texts, SOME, images_of(folder, batch_size=3), tmp_path / "out")
    assert result.scores == {"top_1": first / 24, "top_5": among_five / 24}
    assert result.images == 24 and result.left_out == []


def test_ranks_by_hand():
    classes_CE = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    features_NE = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert ranks(features_NE, classes_CE, np.array([0, 1, 0, 2])).tolist() == [0, 1, 2, 1]


def test_a_model_that_tells_nothing_apart_is_no_better_than_chance():
    """All classes are equally near then."""
    found = ranks(np.ones((10, 2)), np.ones((10, 2)), np.arange(10))
    assert (found < 1).mean() == 0.1 and (found < 5).mean() == 0.5


def test_classes_of_the_same_name_each_count(image_tokenizer, read_texts, folder, tmp_path):
    """Labels are numbers then. The second half repeats the first, piece for piece, and comes second."""
    twice = Classes([*NAMES[:5], *NAMES[:5]])
    for name in NAMES[5:]:
        (folder / name.replace(" ", "_")).rename(tmp_path / name)
    for place, name in enumerate(NAMES[:5]):
        (folder / name.replace(" ", "_")).rename(folder / str(5 + place))
    result = evaluate_zero_shot(image_tokenizer, read_texts, twice, images_of(folder), tmp_path / "twice")
    assert result.images == 10 and result.scores["top_1"] == 0


# ---- in pieces


def test_a_second_run_and_other_processes(image_tokenizer, read_texts, folder, tmp_path, monkeypatch):
    alone = evaluate_zero_shot(image_tokenizer, read_texts, SOME, images_of(folder), tmp_path / "alone")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert evaluate_zero_shot(image_tokenizer, read_texts, SOME, images_of(folder), tmp_path / "together") is None
    assert len(list((tmp_path / "together").iterdir())) == 4  # of 3 with classes and 6 with images
    monkeypatch.setenv("RANK", "0")
    together = evaluate_zero_shot(image_tokenizer, read_texts, SOME, images_of(folder), tmp_path / "together")
    assert together == alone
    monkeypatch.setattr(image_pieces, "compute", None)  # would fail if an image were looked at again
    assert evaluate_zero_shot(image_tokenizer, read_texts, SOME, images_of(folder), tmp_path / "together") == alone
    monkeypatch.delenv("WORLD_SIZE")
    other = SOME._replace(templates=["{}"])  # needs no image again, either
    evaluate_zero_shot(image_tokenizer, read_texts, other, images_of(folder), tmp_path / "alone")
    assert len(list((tmp_path / "alone").iterdir())) == 9 + 3


def test_images_of_no_class_are_left_out_up_to_a_limit(image_tokenizer, read_texts, folder, tmp_path):
    expected = evaluate_zero_shot(image_tokenizer, read_texts, SOME, images_of(folder), tmp_path / "without")
    (folder / "hat").mkdir()
    Image.new("RGB", (30, 30)).save(folder / "hat" / "0.png")
    Image.new("RGB", (30, 30)).save(folder / "bare.png")
    (folder / "cat" / "damaged.png").write_bytes(b"damaged")
    result = evaluate_zero_shot(image_tokenizer, read_texts, SOME, images_of(folder, max_bad=3), tmp_path / "out")
    assert result.scores == expected.scores and result.images == 24
    told = "\n".join(result.left_out)
    assert "bare.png has no label" in told and "damaged.png as an image" in told
    assert "hat/0.png has the label 'hat', which is no class" in told
    with pytest.raises(ValueError, match="3 images cannot be used, --max-bad allows 2"):
        evaluate_zero_shot(image_tokenizer, read_texts, SOME, images_of(folder, max_bad=2), tmp_path / "out")


# ---- classes


def test_labels_are_names_ids_or_numbers():
    numbers = Classes(["cat", "missile", "missile", "7"], ids=["n1", "n2", "n3", "n4"]).numbers()
    assert numbers == {"0": 0, "1": 1, "2": 2, "3": 3, "n1": 0, "n2": 1, "n3": 2, "n4": 3, "cat": 0, "7": 3}


def test_classes_and_templates_from_files(tmp_path):
    (tmp_path / "names.txt").write_text("apple\n\n red_panda \ncafé\n", encoding="utf-8")
    (tmp_path / "templates.txt").write_text("a drawing of {a}.\n{}\n")
    classes = read_classes(tmp_path / "names.txt", tmp_path / "templates.txt")
    assert classes.names == ["apple", "red panda", "café"]
    assert classes.texts(0) == ["a drawing of an apple.", "apple"]
    assert read_classes(tmp_path / "names.txt").texts(1) == ["a photo of a red panda"]


def test_files_that_hold_no_classes_are_told(tmp_path):
    (tmp_path / "names.txt").write_text("apple\nbus\n")
    (tmp_path / "one.txt").write_text("apple\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="one.txt holds 1 class names"):
        read_classes(tmp_path / "one.txt")
    with pytest.raises(ValueError, match="binary.txt is no text"):
        read_classes(tmp_path / "binary.txt")
    for template in ("a photo of a cat", "{name}", "{", "{} {}", "{a[0][0]} {a.x}", ""):
        (tmp_path / "templates.txt").write_text(f"{template}\n")
        with pytest.raises(ValueError, match="is no template: write {} where the class name goes"):
            read_classes(tmp_path / "names.txt", tmp_path / "templates.txt")


def test_the_scenes_have_theirs():
    classes = scene_classes()
    assert tuple(classes.names) == CLASSES and "a photo of an apple" in classes.texts(CLASSES.index("apple"))
    assert all("{" not in text for number in range(len(CLASSES)) for text in classes.texts(number))


def test_imagenet_through_open_clip():
    classes = imagenet_classes()
    assert len(classes.names) == len(classes.ids) == 1000 and len(classes.templates) == 80
    assert classes.texts(0)[0] == "a bad photo of a tench." and "art of the tench." in classes.texts(0)
    numbers = classes.numbers()
    assert numbers["n01440764"] == numbers["tench"] == numbers["0"] == 0 and numbers["n15075141"] == 999


# ---- text tokenizers


def test_a_text_tokenizer_that_does_not_fit_is_told(image_tokenizer, tiny_folder, tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no text tokenizer: name its folder"):
        load_text_reader(image_tokenizer.config, tmp_path)
    image_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no text tokenizer") as error:
        load_text_reader(image_tokenizer.config, tmp_path)
    assert "\n" not in str(error.value)
    size = image_tokenizer.config.text_vocab_size
    with pytest.raises(ValueError, match=f"has {size - 1} entries, the text tower was trained with 63"):
        load_text_reader(SIZES["tiny"], tiny_folder)


def test_the_ids_of_plans_do_not_count(image_tokenizer, text_tokenizer):
    texts = ["a photo of a dog", "dog"]
    before = text_reader(image_tokenizer.config, text_tokenizer)(texts)
    with_plans = deepcopy(text_tokenizer)
    with_plans.add_tokens([plan_token("thing dog"), plan_token("12")], special_tokens=True)
    assert torch.equal(text_reader(image_tokenizer.config, with_plans)(texts), before)


def test_the_released_text_tower_reads_the_vocabulary_of_clip(tmp_path):
    read_texts = load_text_reader(replace(SIZES["tiny"], text_vocab_size=49408), tmp_path)
    # "a photo of a cat" as in CLIP's own examples, between start and end of text
    assert read_texts(["a photo of a cat"]).tolist() == [[49406, 320, 1125, 539, 320, 2368, 49407, 0, 0, 0, 0, 0]]
