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
from tokenizer.quantizer import MultiCodebookQuantizer, QuantizerOptions
from tokenizer.transform import to_images
from tokenizer.vitamin import UpConv


@pytest.fixture(scope="module", params=ARCHITECTURES)
def image_tokenizer(request) -> ImageTokenizer:
    torch.manual_seed(0)
    return ImageTokenizer(replace(SIZES["tiny"], architecture=request.param)).eval()


def test_codes_survive_a_round_trip():
    torch.manual_seed(0)
    quantizer = MultiCodebookQuantizer(8, num_codebooks=2, codebook_size=16)
    codes_NLK = torch.randint(0, 16, (3, 5, 2))
    assert torch.equal(quantizer.encode(quantizer.decode(codes_NLK)), codes_NLK)


def test_quantized_features_are_the_decoded_codes_and_gradient_passes_straight_through():
    torch.manual_seed(0)
    quantizer = MultiCodebookQuantizer(8, num_codebooks=2, codebook_size=16)
    features_NLQ = torch.randn(3, 5, 8, requires_grad=True)
    quantized = quantizer(features_NLQ, QuantizerOptions(entropy_every=1))
    assert torch.equal(quantized.codes_NLK, quantizer.encode(features_NLQ))
    torch.testing.assert_close(quantized.features_NLQ, quantizer.decode(quantized.codes_NLK))
    (gradient,) = torch.autograd.grad(
        quantized.features_NLQ.square().sum() + quantized.features_NLQ.sum(), features_NLQ
    )
    assert gradient.abs().sum() > 0


def test_codes_outside_the_codebook_are_refused():
    quantizer = MultiCodebookQuantizer(8, num_codebooks=2, codebook_size=16)
    with pytest.raises(ValueError, match=r"reach from 16 to 16; the codebook has 0..15"):
        quantizer.decode(torch.full((1, 1, 2), 16))
    with pytest.raises(ValueError, match="3 sub-codebooks"):
        quantizer.decode(torch.zeros(1, 1, 3, dtype=torch.long))


def test_the_entropy_loss_prefers_used_entries():
    quantizer = MultiCodebookQuantizer(8, num_codebooks=2, codebook_size=16)
    every_entry = quantizer.entries().detach().transpose(0, 1).reshape(1, 16, 8)
    one_entry = every_entry[:, :1].expand(1, 16, 8)
    options = QuantizerOptions(entropy_every=1)
    assert quantizer(every_entry, options).entropy_loss < quantizer(one_entry, options).entropy_loss


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


def test_weights_stored_in_bfloat16_are_read_as_float32_and_give_the_codes_of_the_rounded_weights(
    image_tokenizer, tmp_path
):
    rounded = deepcopy(image_tokenizer).bfloat16()
    rounded.save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path).eval()
    pixels_N3HW = torch.rand(2, 3, 32, 32) * 2 - 1
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.encode(pixels_N3HW), rounded.float().encode(pixels_N3HW))


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


def test_only_chosen_entries_get_a_gradient_unless_asked_for_all():
    torch.manual_seed(0)
    quantizer, features_NLQ = MultiCodebookQuantizer(8, 2, 16), torch.randn(1, 3, 8, requires_grad=True)
    reached = []
    for temperature in (0.0, 0.1):
        quantizer.zero_grad()
        quantizer(features_NLQ, QuantizerOptions(index_temperature=temperature)).features_NLQ.pow(3).sum().backward()
        reached.append(0 if quantizer.codebooks_KVq.grad is None else (quantizer.codebooks_KVq.grad != 0).any(-1).sum())
    assert reached == [0, 32]


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_quantized_features_are_those_of_the_codes(temperature):
    torch.manual_seed(0)
    quantizer, features_NLQ = MultiCodebookQuantizer(8, 2, 16), torch.randn(2, 3, 8)
    quantized = quantizer(features_NLQ, QuantizerOptions(index_temperature=temperature))
    torch.testing.assert_close(quantized.features_NLQ, quantizer.decode(quantized.codes_NLK))


def test_without_a_share_nothing_is_perturbed_or_drawn():
    torch.manual_seed(0)
    quantizer, features_NLQ = MultiCodebookQuantizer(8, 2, 16), torch.randn(2, 3, 8)
    state = torch.get_rng_state()
    plain, off = quantizer(features_NLQ), quantizer(features_NLQ, QuantizerOptions(perturbed=0.0, nearest=3))
    assert torch.equal(off.features_NLQ, plain.features_NLQ) and torch.equal(torch.get_rng_state(), state)


def test_perturbed_codes_are_near_ones():
    torch.manual_seed(0)
    quantizer, codes_NLK = MultiCodebookQuantizer(8, 2, 16), torch.randint(16, (2, 500, 2))
    moved_NLK = quantizer.perturb(codes_NLK, torch.tensor([0.0, 0.5]), nearest=3)
    assert torch.equal(moved_NLK[0], codes_NLK[0]), "an image has a share of its own"
    changed_LK = moved_NLK[1] != codes_NLK[1]
    assert changed_LK.float().mean().item() == pytest.approx(0.5, abs=0.04)
    for k, entries in enumerate(quantizer.entries()):
        pairs = zip(codes_NLK[1, changed_LK[:, k], k].tolist(), moved_NLK[1, changed_LK[:, k], k].tolist(), strict=True)
        order = (entries @ entries.T).argsort(descending=True).tolist()
        assert {order[code].index(other) for code, other in pairs} == {1, 2, 3}, "the nearest is the entry itself"
    with pytest.raises(ValueError, match="quantizer.nearest: 16 other entries, but a sub-codebook has 16"):
        quantizer.perturb(codes_NLK, torch.ones(2), nearest=16)


def test_what_is_decoded_is_perturbed_and_codes_still_name_the_image():
    torch.manual_seed(0)
    quantizer, features_NLQ = MultiCodebookQuantizer(8, 2, 16), torch.randn(200, 20, 8)
    exact, moved = quantizer(features_NLQ), quantizer(features_NLQ, QuantizerOptions(perturbed=0.8, nearest=4))
    assert torch.equal(moved.codes_NLK, exact.codes_NLK)
    changed = (moved.features_NLQ - exact.features_NLQ).unflatten(-1, (2, 4)).abs().amax(-1) > 1e-5
    shares_N = changed.float().mean((1, 2))  # uniform between 0 and 0.8
    assert shares_N.mean().item() == pytest.approx(0.4, abs=0.05) and shares_N.std().item() > 0.2
    assert shares_N.min() < 0.1 and 0.6 < shares_N.max() < 1


def test_perturbation_fades():
    options = QuantizerOptions(perturbed=0.4, perturbed_final=0.5)
    assert [options.at(step, 5).perturbed for step in range(5)] == pytest.approx([0.4, 0.35, 0.3, 0.25, 0.2])
    assert options.at(0, 1) == options


@pytest.mark.parametrize(
    "change", [{"perturbed": 1.5}, {"perturbed": -0.1}, {"perturbed_final": 2.0}, {"nearest": 0}], ids=str
)
def test_perturbation_that_makes_no_sense_is_refused(change):
    [(name, value)] = change.items()
    with pytest.raises(ValueError, match=rf"quantizer.{name}: {value} is"):
        QuantizerOptions(**change)


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
