"""Two taps: pixel codes from a shallow layer, codes of meaning from the last one."""

from dataclasses import replace

import pytest
import torch

from tokenizer import SIZES, ImageTokenizer
from tokenizer.architectures import ARCHITECTURES
from tokenizer.weights import codes_hash

# Of four codes of a position, three are of pixels; of two transformer blocks, one is below the tap.
TAPS = replace(SIZES["tiny"], num_codebooks=4, pixel_codebooks=3, depth=2, pixel_depth=1, projection="linear")


@pytest.fixture(params=ARCHITECTURES)
def image_tokenizer(request) -> ImageTokenizer:
    torch.manual_seed(0)
    return ImageTokenizer(replace(TAPS, architecture=request.param)).eval()


def test_what_is_decoded_and_what_is_compared_with_captions_reach_their_own_codes_and_layers(image_tokenizer):
    output = image_tokenizer(torch.rand(2, 3, 32, 32), torch.ones(2, 4, dtype=torch.long))
    ways = {
        "pixels": output.pixels_N3HW.square().sum(),
        "meaning": output.image_features[:, 0].sum() + output.places_NLC.square().sum(),
    }
    reached = {}
    for way, loss in ways.items():
        image_tokenizer.zero_grad()
        loss.backward(retain_graph=True)
        reached[way] = {name for name, p in image_tokenizer.named_parameters() if p.grad is not None and p.grad.any()}
    for way, names in reached.items():
        assert any(name.startswith("encoder.blocks.0.") for name in names)
        assert any(name.startswith("encoder.blocks.1.") for name in names) == (way == "meaning")
        for part in ("quant_proj", "post_quant_proj"):
            assert any(name.startswith(f"{part}_pixels.") for name in names) == (way == "pixels")
            assert any(name.startswith(f"{part}.") for name in names) == (way == "meaning")


def test_pixel_codes_alone_are_decoded_and_the_others_are_those_of_the_last_layer(image_tokenizer, tmp_path):
    pixels_N3HW = torch.rand(2, 3, 32, 32) * 2 - 1
    codes_NLK = image_tokenizer.encode(pixels_N3HW)
    changed_NLK = codes_NLK.clone()
    changed_NLK[..., 0] = (changed_NLK[..., 0] + 1) % 16
    before = image_tokenizer.decode_pixels(codes_NLK)
    assert torch.equal(image_tokenizer.decode_pixels(changed_NLK), before)
    for k in (1, 2, 3):
        changed_NLK = codes_NLK.clone()
        changed_NLK[..., k] = (changed_NLK[..., k] + 1) % 16
        assert not torch.allclose(image_tokenizer.decode_pixels(changed_NLK), before)
    image_tokenizer.save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded.encode(pixels_N3HW), codes_NLK)
    with torch.no_grad():
        image_tokenizer.encoder.blocks[1].mlp.w2.bias += torch.randn(32)
        deeper_NLK = image_tokenizer.encode(pixels_N3HW)
        assert torch.equal(deeper_NLK[..., 1:], codes_NLK[..., 1:]) and not torch.equal(deeper_NLK, codes_NLK)
        names = {codes_hash(loaded), codes_hash(image_tokenizer)}
        image_tokenizer.quant_proj_pixels[1].bias += 1
    assert len({*names, codes_hash(image_tokenizer)}) == 3, "codes are named by all that gives them"


def test_widths_that_make_no_heads_are_named():
    with pytest.raises(ValueError, match="projection attn, 32 -> 6: 32 channels do not make 5 heads; choose"):
        ImageTokenizer(replace(TAPS, pixel_codebooks=1, projection="attn"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_codebooks": 4}, "pixel_codebooks 4 leave none of num_codebooks 4 for meaning"),
        ({"pixel_depth": 2}, "pixel_depth 2 is not below depth 2"),
        ({"quantizer": "residual"}, "pixel_codebooks 3: quantizer residual adds its codes up"),
        ({"layout": "holistic", "layout_args": {"queries": 2}}, "layout holistic does not go with them"),
    ],
)
def test_taps_that_cannot_be_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TAPS, **change)
