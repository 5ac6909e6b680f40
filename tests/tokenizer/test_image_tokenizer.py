"""The image tokenizer's promises, on a tiny one."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tokenizer import SIZES, ImageTokenizer
from tokenizer.architectures import ARCHITECTURES
from tokenizer.projection import AttnProjection
from tokenizer.transform import to_images
from tokenizer.vitamin import UpConv


@pytest.fixture(scope="module", params=ARCHITECTURES)
def image_tokenizer(request) -> ImageTokenizer:
    torch.manual_seed(0)
    return ImageTokenizer(replace(SIZES["tiny"], architecture=request.param)).eval()


def test_encode_takes_images_and_pixels_alike_and_does_not_depend_on_the_batch(image_tokenizer):
    pixels_N3HW = torch.rand(3, 3, 32, 32).mul(255).round().div(127.5).sub(1)
    codes_NLK = image_tokenizer.encode(pixels_N3HW)
    assert codes_NLK.shape == (3, 4, 2) and codes_NLK.dtype == torch.int64
    assert torch.equal(image_tokenizer.encode(to_images(pixels_N3HW)), codes_NLK)
    assert torch.equal(image_tokenizer.encode(pixels_N3HW[1:2]), codes_NLK[1:2])


def test_decode_gives_images_of_the_grid(image_tokenizer):
    codes_NLK = torch.randint(0, 16, (2, 6, 2))
    assert [image.size for image in image_tokenizer.decode(codes_NLK, grid=(2, 3))] == [(48, 32)] * 2
    with pytest.raises(ValueError, match="6 positions are no square grid"):
        image_tokenizer.decode(codes_NLK)


def test_any_multiple_of_16_is_encoded_and_the_rest_refused(image_tokenizer):
    assert image_tokenizer.encode(torch.zeros(1, 3, 48, 32)).shape == (1, 6, 2)
    with pytest.raises(ValueError, match="40 x 32; both sides must be multiples of 16"):
        image_tokenizer.encode(torch.zeros(1, 3, 40, 32))


def test_save_and_load_give_the_same_codes(image_tokenizer, tmp_path):
    image_tokenizer.save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path).eval()
    pixels_N3HW = torch.rand(2, 3, 32, 32) * 2 - 1
    assert loaded.config == image_tokenizer.config
    assert torch.equal(loaded.encode(pixels_N3HW), image_tokenizer.encode(pixels_N3HW))


def test_weights_saved_in_bfloat16_are_half_as_large_and_give_the_codes_of_the_rounded_weights(
    image_tokenizer, tmp_path
):
    image_tokenizer.save_pretrained(tmp_path / "exact")
    image_tokenizer.save_rounded(tmp_path / "rounded")
    exact, rounded = (tmp_path / name / "model.safetensors" for name in ("exact", "rounded"))
    assert rounded.stat().st_size < 0.7 * exact.stat().st_size  # names and shapes are as long as before
    loaded, expected = ImageTokenizer.from_pretrained(tmp_path / "rounded").eval(), deepcopy(image_tokenizer)
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter.copy_(parameter.bfloat16())
    pixels_N3HW = torch.rand(2, 3, 32, 32) * 2 - 1
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.encode(pixels_N3HW), expected.encode(pixels_N3HW))


def test_contrastive_features_are_unit_vectors_of_one_space(image_tokenizer):
    image_features = image_tokenizer.image_features([Image.new("RGB", (40, 50), "red")])
    text_features = image_tokenizer.text_features(torch.tensor([[3, 4, 63, 0, 0]]))
    assert image_features.shape == text_features.shape == (1, 16)
    torch.testing.assert_close(image_features.norm(dim=-1), torch.ones(1))
    torch.testing.assert_close(text_features.norm(dim=-1), torch.ones(1))


def test_text_features_ignore_the_padding(image_tokenizer):
    ids_NT = torch.tensor([[3, 4, 63]])
    padded = torch.tensor([[3, 4, 63, 0, 0, 0]])
    torch.testing.assert_close(image_tokenizer.text_features(ids_NT), image_tokenizer.text_features(padded))


@pytest.mark.parametrize("causal", [False, True])
def test_only_causal_projections_hide_later_positions(causal):
    torch.manual_seed(0)
    projection = AttnProjection(8, 32, heads=4, causal=causal).eval()
    x = torch.randn(1, 6, 8)
    changed = x.clone()
    changed[:, 4:] = torch.randn(1, 2, 8)  # not a constant, which LayerNorm would remove
    same = torch.allclose(projection(x)[:, :4], projection(changed)[:, :4], atol=1e-6)
    assert same == causal


def test_a_causal_projection_fed_step_by_step_equals_one_pass():
    torch.manual_seed(0)
    projection, x, cache = AttnProjection(8, 32, heads=4, causal=True).eval(), torch.randn(2, 6, 8), {}
    steps = torch.cat([projection(x[:, place : place + 1], cache) for place in range(6)], 1)
    torch.testing.assert_close(steps, projection(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 40}, "image_size 40 is not a positive multiple of 16"),
        ({"width": 33}, "width 33 is not a multiple of heads 2"),
        ({"projection": "mlp"}, "unknown projection 'mlp'; known: attn, linear"),
        ({"architecture": "vit"}, "unknown architecture 'vit'; known: vitamin, conv"),
        ({"conv_depths": (1,)}, r"conv_widths \(8, 16\) and conv_depths \(1,\) differ in length"),
        ({"decoder_conv_depths": (1, 1, 1)}, r"decoder_conv_depths \(1, 1, 1\) has 3 numbers, conv_depths"),
        ({"conv_widths": (8,), "conv_depths": (1,)}, "a vitamin has two convolutional stages"),
        ({"architecture": "conv", "conv_widths": (8,) * 5, "conv_depths": (1,) * 5}, "1 to 4 stages"),
    ],
)
def test_impossible_sizes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ImageTokenizer(replace(SIZES["tiny"], **change))


def test_the_linear_projection_is_a_choice():
    model = ImageTokenizer(replace(SIZES["tiny"], projection="linear"))
    assert model.encode(torch.zeros(1, 3, 32, 32)).shape == (1, 4, 2)


def test_large_has_the_released_number_of_parameters():
    with torch.device("meta"):
        model = ImageTokenizer(SIZES["unitok-large"])
    # Released: 820.3 M (shared by encoder 332.3 M and decoder 352.4 M); ours drops no weight and adds none.
    assert round(sum(p.numel() for p in model.encoder.parameters()) / 1e6, 1) == 332.3
    assert round(sum(p.numel() for p in model.decoder.parameters()) / 1e6, 1) == 352.4


def test_doubling_and_convolution_are_one_transposed_convolution():
    torch.manual_seed(0)
    up, x, target = UpConv(6, 5), torch.randn(2, 6, 3, 7, requires_grad=True), torch.randn(2, 5, 6, 14)
    expected = up.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(up(x), expected, atol=1e-5, rtol=0)
    variables = [x, up.conv.weight, up.conv.bias]
    gradients = torch.autograd.grad((up(x) * target).sum(), variables)
    for ours, plain in zip(gradients, torch.autograd.grad((expected * target).sum(), variables), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_checkpointed_blocks_have_the_same_gradients(architecture):
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = ImageTokenizer(replace(SIZES["tiny"], architecture=architecture)).train()
        if checkpointed:
            model.checkpoint_blocks()
        model(torch.rand(2, 3, 32, 32), torch.ones(2, 4, dtype=torch.long)).pixels_N3HW.sum().backward()
        gradients.append(model.encoder.blocks[0].mlp.w0.weight.grad)
    torch.testing.assert_close(*gradients)


def test_only_the_first_images_are_decoded_but_all_have_features():
    torch.manual_seed(0)
    model, pixels_N3HW = ImageTokenizer(SIZES["tiny"]).eval(), torch.rand(3, 3, 32, 32)
    ids_NT = torch.ones(3, 4, dtype=torch.long)
    all_of_them, first = model(pixels_N3HW, ids_NT), model(pixels_N3HW, ids_NT, decoded=1)
    torch.testing.assert_close(first.pixels_N3HW, all_of_them.pixels_N3HW[:1])
    torch.testing.assert_close(first.image_features, all_of_them.image_features)
