"""Quantized models: layers near their own, fewer bytes, the same calls."""

import weakref

import pytest
import torch
from torch import nn

from mllm import generate_images, generate_texts
from mllm.fast.quantize import KINDS, Int8Linear, quantize

BYTES = {"int8": 1, "int4": 0.5 + 4 / 32}  # of a weight; int4 with a scale and a zero for 32 of them
ERROR = {"int8": 0.01, "int4": 0.12}  # relative, of normal weights: half a step of 127 at 4 sigma, of 15 at 2 sigma


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_near_its_own(kind, bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(256, 64, bias=bias).bfloat16(), torch.randn(2, 3, 256).bfloat16()
    nn.init.normal_(linear.weight)
    layer = KINDS[kind](linear)
    y, expected = layer(x).float(), linear(x).float()
    assert y.shape == (2, 3, 64)
    assert ERROR[kind] / 10 < (y - expected).norm() / expected.norm() < ERROR[kind]
    stored = sum(x.nbytes for x in layer.buffers())
    assert stored == pytest.approx(64 * 256 * BYTES[kind], rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_blocks_of_outputs(kind):
    """Torch lays out 4 bits in blocks, and parts of blocks in another way."""
    torch.manual_seed(0)
    for outputs in (16, 48, 64, 80):
        linear, x = nn.Linear(64, outputs).bfloat16(), torch.randn(5, 64).bfloat16()
        y, expected = KINDS[kind](linear)(x).float(), linear(x).float()
        assert y.shape == (5, outputs)
        assert (y - expected).norm() / expected.norm() < ERROR[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_model_draws_and_answers(make_tiny_model, kind):
    model, processor = make_tiny_model()
    tokenizer = {name: x.clone() for name, x in model.image_tokenizer.state_dict().items()}
    frequencies = model.backbone.rotary_emb.inv_freq.clone()
    assert quantize(model, kind) is model
    inside = [type(module) for module in model.backbone.layers.modules() if hasattr(module, "bias")]
    assert inside.count(KINDS[kind]) == 2 * 7 and nn.Linear not in inside
    assert model.lm_head.weight.dtype == model.code_head.outputs[0].weight.dtype == torch.bfloat16
    assert torch.equal(model.backbone.rotary_emb.inv_freq, frequencies)
    assert all(torch.equal(x, tokenizer[name]) for name, x in model.image_tokenizer.state_dict().items())
    first, again = (generate_images(model, processor, ["a dog", "a cat"], seeds=3) for _ in range(2))
    assert [image.tobytes() for image in first] == [image.tobytes() for image in again]
    chat = [{"role": "user", "content": [{"type": "image", "image": first[0]}, {"type": "text", "text": "what?"}]}]
    assert len(generate_texts(model, processor, [chat], max_new_tokens=3)) == 1


def test_layers_that_are_quantized_are_not_kept(make_tiny_model, monkeypatch):
    model, _ = make_tiny_model()
    layers = [weakref.ref(layer) for layer in model.backbone.modules() if isinstance(layer, nn.Linear)]
    left = []

    def int8(linear):
        left.append(sum(layer() is not None for layer in layers))
        return Int8Linear(linear)

    monkeypatch.setitem(KINDS, "int8", int8)
    quantize(model, "int8")
    assert len(left) == 2 * 7 and left[-1] == 1 and left == sorted(left, reverse=True)


def test_what_cannot_be_quantized_is_named(make_tiny_model):
    model, _ = make_tiny_model()
    with pytest.raises(ValueError, match="unknown quantization 'int2'; known: int8, int4"):
        quantize(model, "int2")
    model.backbone.layers[0].mlp.up_proj = nn.Linear(40, 64)
    with pytest.raises(ValueError, match="int8 takes layers of 32n inputs and 16n outputs, not 40 and 64"):
        quantize(model, "int8")
