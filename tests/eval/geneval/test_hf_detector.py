"""Mask2Former and CLIP as GenEval's detector: masks to boxes and scores, and colours only when they are asked for."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from data_recipes.scenes.world import COLORS
from eval.geneval.hf_detector import HfDetector, Thing, instances
from eval.geneval.rules import judge_images
from eval.images.clip import Clip
from tests.tiny_networks import save_clip, save_mask2former


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Clip:
    return Clip.from_pretrained(save_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def detector(clip, tmp_path_factory) -> HfDetector:
    return HfDetector.from_pretrained(save_mask2former(tmp_path_factory.mktemp("mask2former")), clip)


def logits(probabilities: list[list[float]]) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def test_a_mask_becomes_a_box_and_its_certainty_lowers_the_score():
    masks_QHW = torch.full((2, 6, 8), -4.0)
    masks_QHW[0, 1:3, 2:7] = 0.0001  # barely inside: probability 0.5
    masks_QHW[1, 4, 0] = 20.0
    found = instances(logits([[0.9, 0.05, 0.05], [0.05, 0.8, 0.15]]), masks_QHW)
    assert [(place, box) for place, box, _, _ in found] == [(1, [0, 4, 1, 5]), (0, [2, 1, 7, 3])]
    assert [score for _, _, score, _ in found] == pytest.approx([0.8, 0.45], abs=1e-4)
    assert found[1][3].sum() == 10


def test_what_cannot_count_is_left_out():
    masks_QHW = torch.stack([torch.full((4, 4), 9.0), torch.full((4, 4), -9.0)])
    assert instances(logits([[0.29, 0.01, 0.7], [0.9, 0.05, 0.05]]), masks_QHW) == []


def test_one_query_can_be_two_classes():
    found = instances(logits([[0.5, 0.4, 0.1]]), torch.full((1, 4, 4), 20.0))
    assert [place for place, *_ in found] == [0, 1]


def test_a_colour_is_classified_once_and_only_when_asked_for(clip, monkeypatch):
    crops = []
    color = Clip.color
    monkeypatch.setattr(Clip, "color", lambda self, crop, name: crops.append(crop) or color(self, crop, name))
    image, mask_HW = Image.new("RGB", (8, 8), "red"), torch.zeros(8, 8, dtype=torch.bool)
    mask_HW[2:4, 2:6] = mask_HW[5, 3] = True
    things = [Thing(image, mask_HW, clip, cls="cow", box=[2, 2, 6, 6], score=0.9) for _ in range(2)]
    plain = {"tag": "single_object", "prompt": "a cow", "include": [{"class": "cow", "count": 1}]}
    colored = {"tag": "colors", "prompt": "a red cow", "include": [{"class": "cow", "count": 1, "color": "red"}]}

    class Fixed:
        def detect(self, images):
            return [[things[0]], [things[1]]]

    rows = judge_images(Fixed(), [plain, colored], [image, image])
    assert len(crops) == 1 and things[1]["color"] in COLORS
    assert "color" not in json.loads(json.dumps(rows[0]["detections"]))[0]
    pixels = np.asarray(crops[0])
    assert pixels.shape == (4, 4, 3) and (pixels[:2] == (255, 0, 0)).all()
    assert (pixels[2] == 0x99).all() and pixels[3].tolist() == [[0x99] * 3, [255, 0, 0], [0x99] * 3, [0x99] * 3]


def test_it_detects_with_random_weights_at_any_size(detector):
    with torch.no_grad():  # so sure of the third class everywhere that something is found
        detector.model.class_predictor.bias[2] = 20.0
    found = detector.detect([Image.new("RGB", (50, 40), "blue"), Image.new("RGB", (128, 128))])
    assert len(found) == 2 and found[0]
    for thing in found[0]:
        left, top, right, bottom = thing["box"]
        assert 0 <= left < right <= 50 and 0 <= top < bottom <= 40
        assert thing["cls"] == "car" and 0.3 < thing["score"] <= 1 and thing["color"] in COLORS


def test_clip_features_have_unit_length_and_scores_are_their_cosines(clip):
    images, texts = [Image.new("RGB", (40, 32), color) for color in ("red", "blue")], ["a red cow", "x " * 200]
    cosines = (clip.image_features(images) * clip.text_features(texts)).sum(-1)
    assert clip.scores(images, texts) == pytest.approx([max(100 * c, 0) for c in cosines.tolist()], abs=1e-4)
    assert clip.image_features(images).norm(dim=-1).tolist() == pytest.approx([1, 1])
    assert torch.equal(clip.text_features(["\ud83d cow"]), clip.text_features(["? cow"]))


def test_wrong_weights_are_one_line(clip, tmp_path):
    with pytest.raises(ValueError, match="the detector has 3 classes, GenEval has 80"):
        HfDetector.from_pretrained(save_mask2former(tmp_path, num_labels=3), clip)
    with pytest.raises(ValueError, match="cannot load model") as error:
        Clip.from_pretrained(tmp_path / "nowhere")
    assert "\n" not in str(error.value)
