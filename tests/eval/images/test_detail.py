"""Characters and faces are read as they were drawn, and ever fewer as detail is lost."""

import random
from dataclasses import replace

import pytest
import torch
from PIL import ImageFilter, ImageOps

from eval.images import detail
from eval.images.detail import KINDS, SIDES, kept_detail, page, read
from tokenizer import SIZES, ImageTokenizer
from tokenizer.transform import to_images


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", SIDES)
def test_all_are_read_from_what_was_drawn_in_any_colors_and_fewer_from_a_blur(kind, side):
    things, draw, shares = KINDS[kind](side), random.Random(0), []
    image, chosen, boxes = page(things, 256, draw)
    assert len(set(chosen)) > 10 and image.size == (256, 256)
    assert read(image, things, boxes) == chosen
    assert read(ImageOps.invert(image), things, boxes) == chosen
    for radius in (0.25, 0.5):
        blurred = image.filter(ImageFilter.GaussianBlur(radius * side))
        found = read(blurred, things, boxes)
        shares.append(sum(one == other for one, other in zip(found, chosen, strict=True)) / len(chosen))
    assert 1 > shares[0] >= shares[1] and shares[1] < 0.5


class Perfect(ImageTokenizer):
    """Its codes are the pixels."""

    def __init__(self, sizes):
        super().__init__(sizes)
        self.quantizer.encode = lambda features: features

    def features(self, pixels_N3HW):
        return pixels_N3HW

    def decode(self, codes):
        return to_images(codes)


@pytest.mark.parametrize("resize_ratio", [1.0, 1.125])
def test_an_image_tokenizer_that_keeps_all_is_always_right(monkeypatch, resize_ratio):
    monkeypatch.setattr(detail, "SIDES", (8, 16, 96))
    monkeypatch.setattr(detail, "SHOWN", 36)
    perfect = Perfect(replace(SIZES["tiny"], image_size=64, resize_ratio=resize_ratio))
    assert kept_detail(perfect) == {kind: {"mean": 1, "8": 1, "16": 1} for kind in KINDS}


def test_an_image_tokenizer_that_keeps_nothing_is_right_by_chance(monkeypatch):

    monkeypatch.setattr(detail, "SIDES", (8, 16))
    monkeypatch.setattr(detail, "SHOWN", 36)
    torch.manual_seed(0)
    nothing = ImageTokenizer(replace(SIZES["tiny"], image_size=64)).eval()
    first = kept_detail(nothing)
    assert all(of["mean"] < 0.2 for of in first.values())
    assert kept_detail(nothing) == first, "always of the same images"
