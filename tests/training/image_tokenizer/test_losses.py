"""What every loss of the image tokenizer promises; a new one is tested by being listed in one of the dicts."""

import math
from collections.abc import Iterable
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F

from tokenizer import SIZES, ImageTokenizer
from tokenizer.perceptual import EfficientNetLoss
from training.image_tokenizer.losses import (
    ALWAYS,
    LOSSES,
    RECONSTRUCTION_LOSSES,
    Pair,
    reconstruction_losses,
    tokenizer_losses,
)
from training.run.recipe import ReconstructionConfig, TokenizerLossConfig

NAMES = [*RECONSTRUCTION_LOSSES, *LOSSES]


@pytest.fixture(scope="module")
def network() -> EfficientNetLoss:
    return EfficientNetLoss()


def _weights(**given: float) -> TokenizerLossConfig:
    return TokenizerLossConfig(**{**dict.fromkeys(NAMES, 0.0), **given})


def _pass(weights: TokenizerLossConfig, network: EfficientNetLoss) -> tuple[ImageTokenizer, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model, ids_NT = (
        ImageTokenizer(replace(SIZES["tiny"], teacher_width=112)).train(),
        torch.tensor([[3, 63, 0], [5, 7, 63]]),
    )
    pixels_N3HW = torch.rand(2, 3, 32, 32) * 2 - 1
    output = model(pixels_N3HW, ids_NT, model.quantizer.Options(entropy_every=1), layers=True)
    start = ImageTokenizer(model.config).encoder
    return model, tokenizer_losses(output, pixels_N3HW, ids_NT, model.logit_scale.exp(), weights, network, start)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_alone_is_its_weight_times_its_term_and_reaches_the_encoder(name, network):
    model, losses = _pass(_weights(**{name: 2.0}), network)
    assert losses[name].shape == () and losses[name].isfinite()
    torch.testing.assert_close(losses["loss"], 2 * losses[name])
    assert losses.keys() == {"loss", "reconstruction", name, *ALWAYS}, "what has no weight is not computed"
    losses["loss"].backward()
    assert model.encoder.norm.weight.grad.abs().sum() > 0
    assert name == "layers" or model.quant_proj.proj.weight.grad.abs().sum() > 0


def test_all_together_are_the_sum(network):
    weights = {name: 0.5 + place for place, name in enumerate(NAMES)}
    _, losses = _pass(_weights(**weights), network)
    torch.testing.assert_close(losses["loss"], sum(weight * losses[name] for name, weight in weights.items()))


@pytest.mark.parametrize("name", RECONSTRUCTION_LOSSES)
def test_equal_images_lose_nothing_and_a_larger_change_more(name, network):
    torch.manual_seed(0)
    target_N3HW = torch.rand(2, 3, 64, 64) * 2 - 1
    noise_N3HW = torch.randn_like(target_N3HW)
    values = [
        RECONSTRUCTION_LOSSES[name](Pair(target_N3HW + change * noise_N3HW, target_N3HW, network)).item()
        for change in (0.0, 0.1, 0.3)
    ]
    assert values[0] == pytest.approx(0, abs=1e-6) and 0 < values[1] < values[2]


def test_the_recipe_has_a_weight_for_each_and_for_no_other():
    options = {"lpips", "decoded"}
    assert {field.name for field in fields(TokenizerLossConfig)} - options == set(NAMES)
    assert {field.name for field in fields(ReconstructionConfig)} - options == set(RECONSTRUCTION_LOSSES)


def test_a_weight_for_what_the_quantizer_has_not_is_refused(network):
    weights = _weights(entropy=0.1)
    torch.manual_seed(0)
    model, ids_NT = ImageTokenizer(SIZES["tiny"]), torch.tensor([[3, 63]])
    pixels_N3HW = torch.zeros(1, 3, 32, 32)
    output = model(pixels_N3HW, ids_NT)
    output = output._replace(quantized=output.quantized._replace(entropy_loss=None))
    with pytest.raises(ValueError, match="recipe, losses.entropy: this kind of quantizer has no entropy loss"):
        tokenizer_losses(output, pixels_N3HW, ids_NT, model.logit_scale.exp(), weights, network)


def test_a_teacher_of_another_width_is_refused(network):
    pixels_N3HW, ids_NT = torch.zeros(1, 3, 32, 32), torch.tensor([[3, 63]])
    for width in (0, 8):
        model = ImageTokenizer(replace(SIZES["tiny"], teacher_width=width))
        with pytest.raises(
            ValueError, match=f"losses.teacher: the teacher has 112 channels, model.teacher_width is {width}"
        ):
            tokenizer_losses(
                model(pixels_N3HW, ids_NT), pixels_N3HW, ids_NT, torch.ones(()), _weights(teacher=1.0), network
            )


def test_what_tells_the_teachers_features_loses_nothing(network):
    """In any rotation, as far as relations are concerned."""
    torch.manual_seed(0)
    model, ids_NT = ImageTokenizer(replace(SIZES["tiny"], teacher_width=112)), torch.tensor([[3, 63]])
    pixels_N3HW = torch.rand(2, 3, 32, 32) * 2 - 1
    teacher_NLT = network.features(pixels_N3HW)[3].flatten(2).mT
    turned_NLT = teacher_NLT @ torch.linalg.qr(torch.randn(112, 112)).Q
    output = model(pixels_N3HW, ids_NT)._replace(teacher_NLT=3 * teacher_NLT, places_NLC=turned_NLT)
    losses = tokenizer_losses(
        output, pixels_N3HW, ids_NT, torch.ones(()), _weights(teacher=1.0, relations=1.0), network
    )
    assert losses["teacher"].item() == pytest.approx(0, abs=1e-5) == losses["relations"].item()


def test_layers_that_stay_lose_nothing_and_deep_ones_that_go_count_most():
    torch.manual_seed(0)
    taps = {"num_codebooks": 4, "pixel_codebooks": 1, "pixel_depth": 1, "projection": "linear"}
    model = ImageTokenizer(replace(SIZES["tiny"], depth=3, **taps))
    pixels_N3HW, ids_NT = torch.rand(2, 3, 32, 32) * 2 - 1, torch.tensor([[3, 63], [5, 63]])
    output = model(pixels_N3HW, ids_NT, layers=True)
    torch.testing.assert_close(output.pixels_N3HW, model(pixels_N3HW, ids_NT).pixels_N3HW)

    def loss(turned: Iterable[int]) -> float:
        layers = [x_NLC.flip(0, 1, 2) if place in turned else x_NLC for place, x_NLC in enumerate(output.layers)]
        given = output._replace(layers=layers), pixels_N3HW, ids_NT, torch.ones(()), _weights(layers=1.0)
        return tokenizer_losses(*given, None, model.encoder)["layers"].item()

    assert len(output.layers) == 3 and torch.equal(output.layers[-1], model.encoder(pixels_N3HW))
    apart = [1 - F.cosine_similarity(x.flip(0, 1, 2), x, dim=-1).mean().item() for x in output.layers]
    assert loss([]) == pytest.approx(0, abs=1e-6)
    for place, alone in enumerate(apart):
        weight = (1 + place) * math.exp(alone)
        assert loss([place]) == pytest.approx(alone * weight / (6 - 1 - place + weight), rel=1e-4)


def test_without_a_network_only_pixels_are_compared():
    pixels_N3HW = torch.zeros(1, 3, 32, 32)
    losses = reconstruction_losses(pixels_N3HW + 0.5, pixels_N3HW, ReconstructionConfig(l1=1.0, l2=4.0), None)
    assert {name: loss.item() for name, loss in losses.items()} == {"reconstruction": 1.5, "l1": 0.5, "l2": 0.25}
