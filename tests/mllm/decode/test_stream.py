"""Streams: rows of any length, come and gone at any time, on any backbone, are what one uncached pass says."""

from copy import deepcopy

import pytest
import torch
from PIL import Image
from transformers import AutoConfig

from mllm import Mllm
from mllm.config import LLAMA_LIKE
from mllm.decode.stream import Stream
from mllm.fast import BACKENDS, pick_kernels

PROMPTS = ["a red dog", "two cats and a very long prompt about a bus", "a kite"]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
BACKBONES = {name: SIZES for name in (*LLAMA_LIKE, "qwen3")}
BACKBONES["gpt_neox"] = {key: size for key, size in SIZES.items() if key != "num_key_value_heads"}
BACKBONES["llama"] = {**SIZES, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}


def _with_backbone(tiny_model, name, **sizes):
    model, processor = tiny_model
    config = deepcopy(model.config)
    sizes = {**BACKBONES[name], "vocab_size": config.text_config.vocab_size, **sizes}
    config.text_config = AutoConfig.for_model(name, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Mllm(config).eval(), processor


@pytest.fixture(scope="module", params=BACKBONES)
def model_and_processor(request, tiny_model):
    return _with_backbone(tiny_model, request.param)


def _samples(processor, prompts=PROMPTS):
    return [processor.encode_drawing(prompt) for prompt in prompts]


def _inputs(rows: int, steps: int = 5) -> torch.Tensor:
    return torch.randn(steps, rows, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def _uncached(model, sample, x_TD: torch.Tensor) -> torch.Tensor:
    """h_D after the prompt and the embeddings x_TD, in one pass."""
    prompt_BTD = model.embed(torch.tensor([sample.ids]))
    return model.backbone(inputs_embeds=torch.cat([prompt_BTD, x_TD[None]], 1)).last_hidden_state[0, -1]


@pytest.mark.parametrize("way", BACKENDS)
def test_steps_are_one_uncached_pass(model_and_processor, way):
    model, processor = model_and_processor
    samples, inputs = _samples(processor), _inputs(3)
    stream = Stream(model, samples, processor, pick_kernels(model, way))
    for step, x_BD in enumerate(inputs):
        expected = torch.stack([_uncached(model, sample, inputs[:step, row]) for row, sample in enumerate(samples)])
        torch.testing.assert_close(stream.h_ED, expected, atol=1e-5, rtol=1e-4)
        stream.feed(x_BD)


def test_the_layers_of_llamas_are_run_without_transformers_own_forward(tiny_model):
    for name in BACKBONES:
        model, processor = _with_backbone(tiny_model, name)
        calls = []
        model.backbone.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        stream = Stream(model, _samples(processor), processor)
        stream.feed(_inputs(3)[0])
        assert len(calls) == (1 if name in LLAMA_LIKE else 2)


def test_rows_come_and_go(model_and_processor):
    model, processor = model_and_processor
    samples, inputs = _samples(processor), _inputs(3, steps=6)
    stream = Stream(model, samples[:2], processor, room=1)
    stream.feed(inputs[0, :2])
    stream.add(samples[2:])
    stream.feed(inputs[1])
    stream.remove(0)  # the kite's row takes its place
    stream.feed(inputs[2, [2, 1]])
    stream.remove(1)
    for x_BD in inputs[3:, [2]]:
        stream.feed(x_BD)
    expected = _uncached(model, samples[2], inputs[1:, 2])
    torch.testing.assert_close(stream.h_ED[0], expected, atol=1e-5, rtol=1e-4)
    assert len(stream.spans) == 1


def test_memory_grows(tiny_model):
    model, processor = tiny_model
    samples, inputs = _samples(processor), _inputs(3, steps=80)
    small, large = (Stream(model, samples, processor, room=room) for room in (1, 100))
    for x_BD in inputs:
        small.feed(x_BD)
        large.feed(x_BD)
    assert torch.equal(small.h_ED, large.h_ED)


def test_equal_prompts_are_read_once(tiny_model):
    model, processor = tiny_model
    seen = []
    hook = model.backbone.register_forward_pre_hook(
        lambda *call: seen.append(len(call[-1]["inputs_embeds"])), with_kwargs=True
    )
    stream = Stream(model, _samples(processor, ["a dog", "a dog", None, None, "a dog"]), processor)
    hook.remove()
    assert seen == [2] and torch.equal(stream.h_ED, stream.h_ED[[0, 0, 2, 2, 0]])
    assert not torch.equal(stream.h_ED[0], stream.h_ED[2])


def test_equal_words_about_different_images_are_not_equal(tiny_model):
    model, processor = tiny_model
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (32, 32), color)}]}]
        for color in ("red", "blue")
    ]
    stream = Stream(model, [processor.encode(chat) for chat in chats], processor)
    assert not torch.allclose(stream.h_ED[0], stream.h_ED[1])


def test_a_row_longer_than_a_sliding_window_is_refused(tiny_model):
    model, processor = _with_backbone(tiny_model, "mistral", sliding_window=12)
    stream = Stream(model, _samples(processor, ["a"]), processor)
    with pytest.raises(ValueError, match="13 positions, but this model attends to 12 at a time"):
        for x_BD in _inputs(1, steps=10):
            stream.feed(x_BD)
