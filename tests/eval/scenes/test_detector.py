"""The detector: what its maps mean, what it saves, and that a training can be interrupted unseen."""

import json
import random
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from data_recipes.scenes.world import CLASSES, COLORS, World
from eval.geneval.rules import judge, judge_images, load_records
from eval.scenes import detector_training
from eval.scenes.detector import Detector, DetectorConfig, Prediction
from eval.scenes.detector_training import losses, spoil, targets

TINY = {"widths": (4, 4, 8, 8), "depths": (1, 1, 1), "neck_width": 8}


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector(DetectorConfig(CLASSES, tuple(COLORS), **TINY)).eval()


def perfect(goal) -> Prediction:
    """The maps of a detector that knows the targets; cells left out by the targets say background."""
    classes = torch.where(goal.classes < 0, len(CLASSES), goal.classes)
    one_hot = torch.nn.functional.one_hot
    class_logits = 20.0 * one_hot(classes, len(CLASSES) + 1).permute(2, 0, 1)
    color_logits = 20.0 * one_hot(goal.colors.clamp(min=0), len(COLORS)).permute(2, 0, 1)
    return Prediction(class_logits[None], goal.sides[None], color_logits[None])


@pytest.mark.parametrize("seed", range(20))
def test_targets_say_exactly_what_the_scene_shows(detector, seed):
    scene = World("shapes").scene(seed, "held_out")
    goal = targets(scene, detector.config.grid)
    (maps,) = zip(*perfect(goal), strict=True)
    found = detector._things(*maps, (128, 128))
    expected = {(thing.name, *map(float, thing.box)) for thing in scene.things}
    assert {(thing["cls"], *thing["box"]) for thing in found} == expected
    assert len(found) == len(scene.things)
    assert all(thing["score"] > 0.99 for thing in found)
    if scene.things[0].color:
        assert {thing["color"] for thing in found} == {thing.color for thing in scene.things}


def test_the_loss_of_perfect_maps_is_nearly_zero():
    goal = targets(World("shapes").scene(3, "held_out", "counting"), 32)
    prediction = perfect(goal)
    batch = type(goal)(*(value[None] for value in goal))
    assert all(value < 1e-3 for value in losses(prediction, batch).values())


def test_boxes_are_in_pixels_of_the_image_given(detector):
    goal = targets(World("shapes").scene(5, "train", "single_object"), 32)
    (maps,) = zip(*perfect(goal), strict=True)
    (small,), (large,) = (detector._things(*maps, size) for size in ((128, 128), (256, 512)))
    assert large["box"] == [small["box"][i] * (2, 4)[i % 2] for i in range(4)]


def test_detect_takes_images_of_any_size_and_always_names_one_of_ten_colors(detector):
    detector.class_head.bias.data[-1] = -5.0  # see things everywhere
    found = detector.detect([Image.new("RGB", (128, 128)), Image.new("L", (50, 90), 200)])
    assert len(found) == 2
    for thing in found[0] + found[1]:
        assert set(thing) == {"cls", "box", "score", "color"}
        assert thing["color"] in COLORS
    assert detector.detect([]) == []


def test_saved_and_loaded_detects_the_same(detector, tmp_path):
    detector.half().float()  # what is saved is half precision
    detector.save_pretrained(tmp_path, {"seed": 3})
    loaded = Detector.from_pretrained(tmp_path)
    image = World("shapes").render(World("shapes").scene(1))
    assert loaded.detect([image]) == detector.detect([image])
    assert not loaded.training
    assert json.loads((tmp_path / "config.json").read_text())["training"] == {"seed": 3}


def test_a_wrong_folder_is_one_clear_error(detector, tmp_path):
    with pytest.raises(ValueError, match="no detector in .*config.json and model.safetensors missing.*train_detector"):
        Detector.from_pretrained(tmp_path / "nowhere")
    detector.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="holds no detector") as error:
        Detector.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text('{"model_type": "mllm"}')
    with pytest.raises(ValueError, match="holds no detector"):
        Detector.from_pretrained(tmp_path)


def test_spoiled_images_keep_size_and_mostly_their_content():
    image = World("shapes").render(World("shapes").scene(0))
    for seed in range(30):
        spoiled = spoil(image, random.Random(seed))
        assert (spoiled.size, spoiled.mode) == (image.size, "RGB")
        assert spoil(image, random.Random(seed)).tobytes() == spoiled.tobytes()
        assert np.abs(np.asarray(spoiled, dtype=float) - np.asarray(image, dtype=float)).mean() < 30


@pytest.fixture
def short_training(monkeypatch):
    """Two tiny images a step, saved every second step, drawn without the emoji font."""
    monkeypatch.setattr(detector_training, "BATCH", 2)
    monkeypatch.setattr(detector_training, "SAVE_EVERY", 2)
    monkeypatch.setattr(detector_training, "World", lambda: World("shapes"))
    monkeypatch.setattr(detector_training, "DetectorConfig", partial(DetectorConfig, **TINY))


def test_a_resumed_training_ends_with_the_same_weights(short_training, monkeypatch, tmp_path):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    recipe = {"steps": 4, "seed": 0}
    whole, _ = detector_training.train(tmp_path / "whole", recipe)

    calls = []
    step = detector_training.train_step

    def crash_in_the_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return step(*args)

    monkeypatch.setattr(detector_training, "train_step", crash_in_the_third)
    with pytest.raises(RuntimeError, match="power cut"):
        detector_training.train(tmp_path / "cut", recipe)
    monkeypatch.setattr(detector_training, "train_step", step)
    resumed, _ = detector_training.train(tmp_path / "cut", recipe)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


def test_a_checkpoint_of_another_run_is_refused(short_training, tmp_path):
    detector_training.train(tmp_path, {"steps": 2, "seed": 0})
    with pytest.raises(ValueError, match="belongs to another run"):
        detector_training.train(tmp_path, {"steps": 2, "seed": 1})


def test_judge_images_keeps_verdict_and_detections(tmp_path):
    record = {"tag": "single_object", "prompt": "a photo of a cow", "include": [{"class": "cow", "count": 1}]}
    cow = {"cls": "cow", "box": [0, 0, 9, 9], "score": 0.9, "color": "brown"}

    class Fixed:
        def detect(self, images):
            return [[cow], []]

    rows = judge_images(Fixed(), [record, record], [None, None])
    assert [row["correct"] for row in rows] == [True, False]
    assert rows[0]["detections"] == [cow] and judge(record, []) == (False, rows[1]["reason"])
    (tmp_path / "records.jsonl").write_text(json.dumps(record) + "\n\n")
    assert load_records(tmp_path / "records.jsonl") == [record]
    (tmp_path / "records.jsonl").write_text("[]")
    with pytest.raises(ValueError, match="records"):
        load_records(tmp_path / "records.jsonl")
