"""Weights of their own for image positions: text stays what it was, and all ways to compute agree."""

import pytest
import torch
from transformers import AutoConfig

from mllm import Mllm, generate_images, generate_texts
from mllm.config import CACHE
from mllm.decode.stream import Stream
from mllm.fast import pick_kernels
from mllm.image_layers import ImageLayers

NARROW = {"width": 16, "hidden": 24}


@pytest.fixture(scope="module")
def narrow(make_tiny_model):
    """(model, processor) to read from."""
    return make_tiny_model("placed_tables", image_layers=NARROW)


def _codes(seed: int) -> torch.Tensor:
    return torch.randint(0, 16, (4, 2), generator=torch.Generator().manual_seed(seed))


def _samples(processor) -> list:
    image = {"type": "image", "image": _codes(1)}
    words, answer = {"type": "text", "text": "what is this?"}, {"role": "assistant", "content": "a dog"}
    chats = [
        [{"role": "user", "content": [image, words]}, answer],
        [{"role": "user", "content": [words, image, words, image]}, answer],
        [{"role": "user", "content": "hello"}, answer],
    ]
    drawings = [processor.encode_drawing(prompt, _codes(place)) for place, prompt in enumerate(("a red dog", None))]
    return [*drawings, *(processor.encode(chat, open_answer=False) for chat in chats)]


def _logits(model, **inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def test_text_before_an_image_is_the_backbones_bit_for_bit(narrow):
    model, processor = narrow
    ids = torch.tensor([processor.encode_drawing("two dogs").ids[:-1]])
    with torch.no_grad():
        expected = model.lm_head(model.backbone(inputs_embeds=model.get_input_embeddings()(ids)).last_hidden_state)
    assert torch.equal(_logits(model, input_ids=ids), expected)
    for seed in range(2):
        drawn = processor.collate([processor.encode_drawing("two dogs", _codes(seed))])
        logits = _logits(model, input_ids=drawn.input_ids, codes=drawn.codes)
        assert torch.equal(logits[:, : ids.shape[1]], expected)
    assert not torch.equal(logits[:, ids.shape[1] + 5], expected[:, -1])


def test_text_after_an_image_depends_on_it(narrow):
    model, processor = narrow
    batch = processor.collate([_samples(processor)[2]])
    one, other = (_logits(model, input_ids=batch.input_ids, codes=_codes(seed)[None]) for seed in (1, 2))
    assert not torch.allclose(one[:, -1], other[:, -1], atol=1e-5)


@pytest.mark.parametrize("left", [False, True])
def test_a_batch_loses_the_sum_of_its_parts(narrow, left):
    model, processor = narrow
    samples = _samples(processor)

    def losses(samples: list) -> torch.Tensor:
        output = model(**vars(processor.collate(samples, left=left)))
        return torch.stack([output.text_loss, output.text_count, output.code_loss, output.code_count])

    torch.testing.assert_close(losses(samples), sum(losses([one]) for one in samples), rtol=1e-4, atol=1e-4)


def test_wide_layers_with_the_backbones_weights_are_the_backbone(make_tiny_model):
    """Then nothing but the entrance and the exit, both the identity here, tells image positions from others."""
    plain, processor = make_tiny_model()
    sizes = plain.config.text_config
    mixed, _ = make_tiny_model(image_layers={"width": sizes.hidden_size, "hidden": sizes.intermediate_size})
    mixed.load_state_dict(plain.state_dict(), strict=False)
    inside = mixed.image_layers
    with torch.no_grad():
        for linear in (inside.enter, inside.leave):
            torch.nn.init.eye_(linear.weight)
        inside.norm.weight.copy_(plain.backbone.norm.weight)
        for mine, layer in zip(inside.layers, plain.backbone.layers, strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            norm, qkv = mine.project
            norm.weight.copy_(layer.input_layernorm.weight)
            mine.norm.weight.copy_(layer.post_attention_layernorm.weight)
            qkv.weight.copy_(torch.cat([p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj)]))
            mine.out.weight.copy_(attention.o_proj.weight)
            mine.gate_up.weight.copy_(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
            mine.down.weight.copy_(mlp.down_proj.weight)
    batch = vars(processor.collate(_samples(processor)))
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(_logits(mixed, **batch)[real], _logits(plain, **batch)[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernels", ["auto", "eager", "transformers"])
@pytest.mark.parametrize("beside", ["text", "image"])
def test_steps_give_what_one_pass_gives(narrow, kernels, beside):
    """In a batch with a text, whose rows go through both kinds of layers, and with an image."""
    model, processor = narrow
    batch = processor.collate([processor.encode_drawing("a red dog", _codes(0))])
    ids, drawing = batch.input_ids[0].tolist(), processor.encode_drawing("a red dog")
    with torch.no_grad():
        x_BTD = model.embed(batch.input_ids, batch.codes)
        whole_TD = model.run_layers(x_BTD, batch.input_ids).last_hidden_state[0]
        other = drawing if beside == "image" else processor.encode([{"role": "user", "content": "hi"}])
        stream = Stream(model, [other, drawing], processor, pick_kernels(model, kernels))
        for place in range(len(drawing.ids), len(ids)):
            torch.testing.assert_close(stream.h_ED[1], whole_TD[place - 1], rtol=1e-4, atol=1e-5)
            is_image = ids[place] == processor.image_id
            x_BD = torch.stack([x_BTD[0, place if beside == "image" else 1], x_BTD[0, place]])
            stream.feed(x_BD, torch.tensor([is_image and beside == "image", is_image]))
    torch.testing.assert_close(stream.h_ED[1], whole_TD[-1], rtol=1e-4, atol=1e-5)


def test_a_pass_goes_on_from_the_keys_and_values_of_another(narrow):
    """Before its first image, between both, and in its last text."""
    model, processor = narrow
    batch = processor.collate([_samples(processor)[3]])
    ids, whole = batch.input_ids, _logits(model, input_ids=batch.input_ids, codes=batch.codes)
    second = ids[0].tolist().index(processor.eoi_id) + 2
    for cut, images in ((3, 0), (second, 1), (ids.shape[1] - 2, 2)):
        with torch.no_grad():
            start = model(input_ids=ids[:, :cut], codes=batch.codes[:images] if images else None, use_cache=True)
            left = batch.codes[images:] if images < 2 else None
            rest = model(input_ids=ids[:, cut:], codes=left, **{CACHE: start[CACHE]})
        torch.testing.assert_close(torch.cat([start.logits, rest.logits], 1), whole, rtol=1e-4, atol=1e-5)


def test_drawings_and_answers_are_the_same_alone_and_together(narrow):
    model, processor = narrow
    options = {"cfg_scale": 2.0}
    prompts = ["a dog", "two red cats"]
    together = generate_images(model, processor, prompts, [1, 2], **options)
    alone = [generate_images(model, processor, [p], [s], **options)[0] for p, s in zip(prompts, (1, 2), strict=True)]
    assert [image.tobytes() for image in together] == [image.tobytes() for image in alone]
    image = {"type": "image", "image": _codes(1)}
    chats = [[{"role": "user", "content": [image, {"type": "text", "text": text}]}] for text in ("what?", "how many?")]
    answers = generate_texts(model, processor, chats, max_new_tokens=6)
    assert answers == [generate_texts(model, processor, [chat], max_new_tokens=6)[0] for chat in chats]


def test_gradients_reach_the_new_weights_alone(make_tiny_model):
    model, processor = make_tiny_model(image_layers=NARROW)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("image_layers", "code_")))
    drawing = vars(processor.collate([processor.encode_drawing("a red dog", _codes(0))]))
    output = model.train()(**drawing)
    output.loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name.startswith(("image_layers", "code_")))
    assert all(p.grad is None for name, p in model.named_parameters() if name.startswith(("backbone", "lm_head")))
    used = [p.grad.abs().max() > 0 for p in model.image_layers.parameters()]
    assert all(used)


def test_in_training_all_weights_take_part_without_an_image_too(make_tiny_model):
    model, processor = make_tiny_model(image_layers=NARROW)
    batch = vars(processor.collate([_samples(processor)[4]]))
    output, plain = model.train()(**batch), model.eval()(**batch)
    torch.testing.assert_close(output.loss, plain.loss)
    output.loss.backward()
    parameters = dict(model.named_parameters())
    assert all(p.grad is not None for name, p in parameters.items() if not name.startswith("image_tokenizer"))
    assert not any(p.grad.any() for name, p in parameters.items() if name.startswith("image_layers"))


def test_saved_and_loaded_it_is_the_same(narrow, tmp_path):
    model, processor = narrow
    model.save_pretrained(tmp_path)
    loaded = Mllm.from_pretrained(tmp_path).eval()
    batch = vars(processor.collate(_samples(processor)))
    assert loaded.config.image_layers == NARROW
    assert torch.equal(_logits(loaded, **batch), _logits(model, **batch))


def test_other_backbones_are_refused():
    with pytest.raises(ValueError, match="image_layers: the backbone is a gpt2, not one of llama"):
        ImageLayers(AutoConfig.for_model("gpt2"), 16, 24)
