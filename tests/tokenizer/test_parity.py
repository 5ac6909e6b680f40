"""The image tokenizer against the reference's numbers, through the converter: full and causal projections."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.golden_data import filled, golden, make_images, make_texts, reference_shapes
from tokenizer import SIZES, ImageTokenizer, ImageTokenizerConfig
from tokenizer.convert import convert_unitok

SMALL = ImageTokenizerConfig(
    conv_widths=(64, 128),
    width=384,
    depth=14,
    heads=6,
    codebook_size=512,
    embed_dim=256,
    text_width=256,
    text_heads=4,
    text_layers=2,
)
# config, seed of the images, batch
CASES = {
    "tok_small": (SMALL, 1000, 2),
    "tok_base": (SIZES["unitok-base"], 1010, 2),
    "tok_large": (SIZES["unitok-large"], 1020, 1),
}
SLOW = {"tok_large"}  # 820 M parameters
ATOL = 1e-4


def reference_weights(model: ImageTokenizer) -> dict[str, torch.Tensor]:
    """The filled state dict under the reference's names, what the converter drops included."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    K, V, q = shapes.pop("quantizer.codebooks_KVq")
    for k in range(K):
        shapes[f"quantizer.codebooks.{k}.codebook.weight"] = (V, q)
        shapes[f"quantizer.codebooks.{k}.vocab_usage"] = (V,)
    shapes["encoder.pos_embed"] = (1, 1, model.config.width)
    for part in ("quant_proj", "post_quant_proj"):
        shapes[f"{part}.attn.zero_k_bias"] = (model.config.width,)
    return {name: filled(name, shape) for name, shape in shapes.items()}


def _cases() -> list:
    return [
        pytest.param((name, causal), id=name + "-causal" * causal, marks=[pytest.mark.slow] * (name in SLOW))
        for name in CASES
        for causal in (False, True)
    ]


@pytest.fixture(scope="module", params=_cases())
def case(request):
    """(model, pixels, texts, the golden tensors of the case)."""
    name, causal = request.param
    config, seed, batch = CASES[name]
    model = ImageTokenizer(replace(config, causal=causal)).eval()
    model.load_state_dict(convert_unitok(reference_weights(model)))
    prefix = f"{name}/causal/" if causal else f"{name}/"
    stored = {key.removeprefix(prefix): value for key, value in golden().items() if key.startswith(prefix)}
    return model, make_images(seed, batch), make_texts(seed + 1, batch), stored


@torch.no_grad()
def test_features_and_codes(case):
    model, pixels_N3HW, _, stored = case
    features_NLQ = model.features(pixels_N3HW)
    torch.testing.assert_close(features_NLQ, stored["quant_proj"], atol=ATOL, rtol=0)
    codes_NKL = model.quantizer.encode(features_NLQ).transpose(1, 2)
    clear = stored["index_margin"] > 1e-5
    assert clear.float().mean() > 0.99
    assert torch.equal(codes_NKL[clear], stored["indices"].long()[clear])


@torch.no_grad()
def test_decoding_and_contrastive_features(case):
    model, _, ids_NT, stored = case
    codes_NLK = stored["indices"].long().transpose(1, 2)  # the stored ones: a near tie must not spoil the image
    x_NLC = model.widen(model.quantizer.decode(codes_NLK))
    torch.testing.assert_close(x_NLC[:, ::32], stored["post_quant_proj_slice"], atol=ATOL, rtol=0)
    pixels_N3HW = model.decode_pixels(codes_NLK)
    torch.testing.assert_close(pixels_N3HW[..., 96:160, 96:160], stored["image_crop"], atol=ATOL, rtol=0)
    image_features = model.projection(model.fc_norm(x_NLC.mean(1)))
    torch.testing.assert_close(image_features, stored["encode_image"], atol=ATOL, rtol=0)
    if "encode_text" in stored:
        torch.testing.assert_close(model.text_encoder(ids_NT), stored["encode_text"], atol=ATOL, rtol=0)
        assert torch.equal(model.text_features(ids_NT), F.normalize(model.text_encoder(ids_NT), dim=-1))


def test_every_tensor_of_the_released_checkpoint_has_its_place():
    reference = {
        name: torch.empty(shape, device="meta") for name, shape in reference_shapes("state_dict_unitok_large").items()
    }
    with torch.device("meta"):
        ours = ImageTokenizer(SIZES["unitok-large"]).state_dict()
    converted = convert_unitok(reference)
    assert {name: tensor.shape for name, tensor in converted.items()} == {n: t.shape for n, t in ours.items()}
