"""The image tokenizer against the reference's numbers, through the converter: full and causal projections."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import pytest
import torch

from tests.golden_data import assert_reproduced, filled, golden, gradients, make_images, make_texts, reference_shapes
from tokenizer import SIZES, ImageTokenizer, ImageTokenizerConfig, unitok
from tokenizer.quantizers import count_codes
from tokenizer.quantizers.multi_codebook import MultiCodebookOptions
from training.image_tokenizer.losses import tokenizer_losses
from training.run.recipe import TokenizerLossConfig

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
NEAR_TIE = 1e-5  # of the cosines of two entries: which is nearer depends on the machine
LOSSES = TokenizerLossConfig(l1=0.2, l2=1.0, quantizer=1.0, entropy=0.1, contrastive=1.0, decoded=1)


class Case(NamedTuple):
    model: ImageTokenizer
    dropped: dict[str, torch.Tensor]  # tensors that only the reference has
    pixels_N3HW: torch.Tensor
    ids_NT: torch.Tensor
    stored: dict[str, torch.Tensor]

    @property
    def codes_NLK(self) -> torch.Tensor:
        """The stored ones: a near tie must not spoil the image."""
        return self.stored["indices"].long().transpose(1, 2)


def _params(*kinds: bool) -> list:
    return [
        pytest.param((name, causal), id=name + "-causal" * causal, marks=[pytest.mark.slow] * (name in SLOW))
        for name in CASES
        for causal in kinds
    ]


@lru_cache(maxsize=1)  # one after the other: they are large
def converted(name: str) -> tuple[ImageTokenizer, dict[str, torch.Tensor]]:
    """The reference's weights as ours, and the tensors that only the reference has."""
    config = replace(CASES[name][0])
    layout = unitok.unitok_layout(config)
    weights = {name: filled(name, shape) for name, shape in unitok.reference_shapes(layout).items()}
    model = ImageTokenizer(config)
    model.load_state_dict(unitok.to_ours(layout, weights))
    return model, {name: weights[name] for entry in layout.values() for name in entry.dropped}


@pytest.fixture(scope="module", autouse=True)
def memory():
    yield
    converted.cache_clear()


@pytest.fixture(scope="module", params=_params(False, True))
def case(request) -> Case:
    name, causal = request.param
    _, seed, batch = CASES[name]
    model, dropped = converted(name)
    model.config.causal = model.quant_proj.causal = model.post_quant_proj.causal = causal
    model.eval().zero_grad()
    stored = golden(f"{name}/causal/" if causal else f"{name}/")
    return Case(model, dropped, make_images(seed, batch), make_texts(seed + 1, batch), stored)


@torch.no_grad()
def test_codes_and_what_they_become(case):
    stored = {
        name: tensor for name, tensor in case.stored.items() if not name.startswith(("train_", "grad_", "causal/"))
    }
    ours = {**_encoded(case), **_decoded(case), "encode_text": case.model.text_encoder(case.ids_NT)}
    clear = stored["index_margin"] > NEAR_TIE
    assert clear.float().mean() > 0.99
    ours["indices"] = torch.where(clear, ours["indices"], stored["indices"])
    if case.model.config.causal:  # the same but for the projections
        ours = {name: tensor for name, tensor in ours.items() if name in stored}
    assert_reproduced(ours, stored)


def _encoded(case: Case) -> dict[str, torch.Tensor]:
    model = case.model
    x_NLC = model.encoder(case.pixels_N3HW)
    features_NLQ = model.quant_proj(x_NLC)
    cosine_KPV = model.quantizer.scores(model.quantizer.split(model.quantizer.bound(features_NLQ)))
    best_KP2 = cosine_KPV.topk(2).values
    margin_NKL = (best_KP2[..., 0] - best_KP2[..., 1]).unflatten(1, features_NLQ.shape[:2]).transpose(0, 1)
    return {
        "encoder_output_slice": x_NLC[:, ::32],
        "encoder_output_stats": _statistics(x_NLC.flatten()),
        "quant_proj": features_NLQ,
        "indices": model.quantizer.encode(features_NLQ).transpose(1, 2),
        "index_margin": margin_NKL,
    }


def _decoded(case: Case) -> dict[str, torch.Tensor]:
    model = case.model
    x_NLC = model.widen(model.quantizer.decode(case.codes_NLK))
    pixels_N3HW = model.decode_pixels(case.codes_NLK)
    return {
        "post_quant_proj_slice": x_NLC[:, ::32],
        "post_quant_proj_stats": _statistics(x_NLC.flatten()),
        "image_crop": pixels_N3HW[..., 96:160, 96:160],
        "image_stats": _statistics(pixels_N3HW.flatten(0, 1).flatten(1)),
        "encode_image": model.projection(model.fc_norm(x_NLC.mean(1))),
    }


def _statistics(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x.mean(-1), x.std(-1), x.abs().amax(-1)], -1)


@pytest.mark.parametrize("case", _params(False), indirect=True)
def test_a_training_step(case):
    """One pass in training mode, the losses, and the gradient of their sum."""
    stored = {name: tensor for name, tensor in case.stored.items() if name.startswith(("train_", "grad_"))}
    has_gradient = "train_total_loss" in stored
    model = case.model.train().requires_grad_(has_gradient)
    with _settled(case):
        options = MultiCodebookOptions(entropy_every=int(has_gradient))
        output = model(case.pixels_N3HW, case.ids_NT, options, LOSSES.decoded)
    losses = tokenizer_losses(output, case.pixels_N3HW, case.ids_NT, model.logit_scale.exp(), LOSSES)
    usage_K = (count_codes(output.quantized.codes_NLK, model.config.codebook_size) > 0).float().mean(1)
    ours = {
        "train_l1": losses["l1"],
        "train_l2": losses["l2"],
        "train_vq_loss": losses["quantizer"],
        "train_entropy_loss": losses["entropy"],
        "train_clip_loss": losses["contrastive"],
        "train_logit_scale": model.logit_scale.exp(),
        "train_img_rec_crop": output.pixels_N3HW[..., 96:160, 96:160],
        "train_clip_image_features": output.image_features,
        "train_clip_text_features": output.text_features,
        "train_codebook_usage_percent": 100 * usage_K.mean(),
        "train_vocab_usage_buffer_cb0": _shares(output.quantized.codes_NLK[..., 0], model.config.codebook_size),
    }
    if has_gradient:
        losses["loss"].backward()
        layout = unitok.unitok_layout(model.config)
        of = unitok.to_reference(layout, {name: p.grad for name, p in model.named_parameters()}, case.dropped)
        names = [name.removeprefix("grad_norm/") for name in stored if name.startswith("grad_norm/")]
        ours |= {"train_total_loss": losses["loss"], **gradients(of, names, rows=64)}
    assert_reproduced(ours, stored)


@contextmanager
def _settled(case: Case) -> Iterator[None]:
    """Near ties fall as the reference's did: features are moved a little towards the stored codes there."""
    is_near_NLQ = (case.stored["index_margin"] <= NEAR_TIE).transpose(1, 2).repeat_interleave(8, -1)
    move_NLQ = 1e-4 * is_near_NLQ * case.model.quantizer.decode(case.codes_NLK).detach()
    hook = case.model.quant_proj.register_forward_hook(lambda _, __, features_NLQ: features_NLQ + move_NLQ)
    yield
    hook.remove()


def _shares(codes: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Of each entry: what the reference's running statistic holds after its first batch."""
    return codes.flatten().bincount(minlength=codebook_size) / codes.numel()


def test_every_tensor_of_the_released_checkpoint_has_its_place():
    ours = unitok.reference_shapes(unitok.unitok_layout(SIZES["unitok-large"]))
    assert {name: list(shape) for name, shape in ours.items()} == reference_shapes("state_dict_unitok_large")
