"""Edits: the same whatever the batch, guidance over picture and words, masks, and what cannot be edited."""

import numpy as np
import pytest
import torch
from PIL import Image

from mllm import edit_images, generate_texts
from mllm.codes import CODE_EMBEDDINGS, CODE_HEADS
from mllm.decode.engine import Engine
from mllm.decode.options import EditingOptions, Sampling
from mllm.decode.program import Edit, unconditional
from mllm.decode.region import read_region
from mllm.decode.rerank import edit_fit
from mllm.decode.sampling import Picker
from mllm.fast import cpu

KINDS = [(embedding, head) for embedding in CODE_EMBEDDINGS for head in CODE_HEADS]
PROMPTS = ["make the dog blue", "remove the clock, and whatever else there is", "add a kite"]


def _picture(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def _mask(box: tuple[int, int, int, int], size: tuple[int, int] = (32, 32)) -> Image.Image:
    """Transparent inside the box."""
    mask = Image.new("RGBA", size, "black")
    mask.paste((0, 0, 0, 0), box)
    return mask


PICTURES = [_picture(seed) for seed in range(3)]


def _always(model, id: int) -> None:
    model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, torch.tensor([id]), 100.0))


@pytest.fixture(scope="module")
def editor(make_tiny_model):
    """A model that draws whatever it is asked."""
    model, processor = make_tiny_model()
    _always(model, processor.boi_id)
    return model, processor


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_an_edit_does_not_depend_on_its_batch(make_tiny_model, kind):
    model, processor = make_tiny_model(*kind)
    _always(model, processor.boi_id)
    options = {"cfg_scale": 3.0, "image_cfg_scale": 1.5, "temperature": 1.0, "cfg_interval": (0, 0.8)}
    masks = [None, _mask((0, 0, 16, 32)), None]
    together = edit_images(model, processor, PICTURES, PROMPTS, masks, seeds=[5, 6, 7], kernels="eager", **options)
    assert len({image.tobytes() for image in together}) == 3 and together[0].size == (32, 32)
    for row, (picture, prompt, mask) in enumerate(zip(PICTURES, PROMPTS, masks, strict=True)):
        [alone] = edit_images(model, processor, picture, prompt, mask, seeds=5 + row, **options)
        assert alone.tobytes() == together[row].tobytes()


def test_a_plan_comes_before_an_edit_and_is_not_shown(make_tiny_model):
    model, processor = make_tiny_model(plan_length=5)
    first, seen = torch.tensor(sorted(processor.plan_ids)[:1]), []
    model.lm_head.register_forward_hook(lambda _, __, logits: seen.append(1) or logits.index_fill(-1, first, 100.0))
    [edited] = edit_images(model, processor, PICTURES[0], PROMPTS[0], seeds=4)
    assert len(seen) == 5 and edited.size == (32, 32) and "answer" not in edited.info


def test_an_engine_gives_the_same_edit(editor):
    [alone] = edit_images(*editor, PICTURES[0], PROMPTS[0], seeds=4)
    with Engine(*editor) as engine:
        handles = [engine.submit(Edit([PICTURES[0]], PROMPTS[0], seed=seed, previews=1)) for seed in (3, 4)]
        *previews, edited = handles[1].result()
    assert edited.tobytes() == alone.tobytes() and [preview.done for preview in previews] == [0.5]
    with Engine(*editor, max_rows=2) as engine, pytest.raises(ValueError, match="takes 3 rows of 2"):
        engine.submit(Edit([PICTURES[0]], PROMPTS[0]))


def test_guidance_is_over_both_conditions(editor):
    model, processor = editor
    logits_BV = torch.randn(9, 16)
    asked, shown, nothing = logits_BV.chunk(3)
    chosen = Picker((4.0, 1.5), [], sampling=Sampling())(logits_BV, 0)
    expected = (nothing + 1.5 * (shown - nothing) + 4.0 * (asked - shown)).argmax(-1)
    assert torch.equal(chosen, expected.repeat(3))
    equal = Picker((3.0, 3.0), [], sampling=Sampling())(logits_BV, 0)[:3]
    assert torch.equal(equal, Picker((3.0,), [], sampling=Sampling())(torch.cat([asked, nothing]), 0)[:3])
    over_words = Picker((3.0, 1.0), [], sampling=Sampling())(logits_BV, 0)[:3]
    assert torch.equal(over_words, Picker((3.0,), [], sampling=Sampling())(logits_BV[:6], 0)[:3])


def test_a_guidance_takes_the_rows_that_it_needs(editor):
    model, processor = editor
    seen, source = [], torch.zeros(4, 2, dtype=torch.long)
    lone, shown = processor.encode_drawing(None), processor.encode_drawing(None, sources=[source])
    assert shown.ids == [*lone.ids[:2], *processor.encode_image(source).ids, *lone.ids[2:]]
    hook = model.backbone.norm.register_forward_hook(lambda _, __, h: seen.append(len(h)))
    for scales, rows in (((3.0, 1.5), [shown, lone]), ((3.0, 1.0), [shown]), ((3.0, 3.0), [lone]), ((1.0, 1.0), [])):
        options = dict(zip(("cfg_scale", "image_cfg_scale"), scales, strict=True))
        assert [row.ids for row in unconditional(processor, EditingOptions(**options), [source])] == [
            row.ids for row in rows
        ]
        seen.clear()
        edit_images(model, processor, PICTURES[0], PROMPTS[0], **options)
        assert max(seen) == 1 + len(rows)
    hook.remove()


def test_all_kernels_guide_alike(make_tiny_model):
    model, _ = make_tiny_model()
    h_BD = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    for sampling in (Sampling(temperature=0.7, top_p=0.9), Sampling()):

        def pick(sampling=sampling):
            return Picker((4.0, 1.5), [torch.Generator().manual_seed(row) for row in range(3)], 2, sampling)

        codes_BK = model.code_head.sample(h_BD, pick())
        assert torch.equal(cpu.head(model.code_head)(h_BD, pick()), codes_BK)
        assert torch.equal(codes_BK[:3], codes_BK[3:6]) and torch.equal(codes_BK[:3], codes_BK[6:])


def test_outside_of_a_mask_codes_and_pixels_stay(editor, monkeypatch):
    model, processor = editor
    decode, seen = model.decode_image_tokens, []
    monkeypatch.setattr(model, "decode_image_tokens", lambda codes_NLK: seen.append(codes_NLK) or decode(codes_NLK))
    picture, mask = PICTURES[0], _mask((3, 20, 9, 22))  # in the third of four positions
    [edited] = edit_images(model, processor, picture, PROMPTS[0], mask, seeds=1, temperature=1.0)
    kept = (seen[0] == model.image_tokenizer.encode([picture])).all(-1)[0]
    assert kept.tolist() == [True, True, False, True]
    changed = (np.asarray(edited) != np.asarray(picture)).any(-1)
    assert changed[20:22, 3:9].any()
    changed[20:22, 3:9] = False
    assert not changed.any()


def test_a_large_picture_is_changed_where_it_is_free_alone(editor):
    """The model sees the middle square, at its own size."""
    picture, mask = _picture(1, (100, 64)), _mask((0, 10, 60, 30), (100, 64))
    [edited] = edit_images(*editor, picture, PROMPTS[0], mask)
    changed = (np.asarray(edited) != np.asarray(picture)).any(-1)
    assert edited.size == (100, 64) and changed[10:30, 18:60].any()
    changed[10:30, 18:60] = False
    assert not changed.any()


def test_positions_are_free_where_a_pixel_is(tiny_model):
    processor = tiny_model[1]
    picture = Image.new("RGB", (100, 64))
    for box, free in (((49, 31, 50, 32), [0]), ((49, 31, 51, 33), [0, 1, 2, 3]), ((81, 63, 100, 64), [3])):
        region = read_region(_mask(box, picture.size), picture, processor.view(picture))
        assert [place for place, one in enumerate(region.free_positions(2)) if one] == free


def test_words_in_place_of_an_edit_come_with_the_picture_as_it_was(tiny_model):
    model, processor = tiny_model
    picture = _picture(2, (40, 50))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": PROMPTS[0]}]
    [words] = generate_texts(model, processor, [{"role": "user", "content": content}])
    for options in ({}, {"mask": _mask((0, 0, 40, 50), (40, 50))}, {"candidates": 2}):
        mask = options.pop("mask", None)
        [edited] = edit_images(model, processor, picture, PROMPTS[0], mask, **options)
        assert edited.info["answer"] == words and edited.tobytes() == picture.tobytes() and edited.size == picture.size
    assert "answer" not in picture.info


def test_several_pictures_are_all_read(editor):
    model, processor = editor
    both, other, lone = (
        edit_images(model, processor, [pictures], PROMPTS[:1], temperature=0, cfg_scale=20.0)[0]
        for pictures in ([PICTURES[0], PICTURES[1]], [PICTURES[0], PICTURES[2]], [PICTURES[0]])
    )
    assert len({both.tobytes(), other.tobytes(), lone.tobytes()}) > 1


@torch.no_grad()
def test_the_best_of_several_edits_is_the_one_that_the_prompt_explains(editor):
    model, processor = editor
    source, codes_NLK = torch.randint(16, (4, 2)), torch.randint(16, (5, 4, 2))
    fits_N = edit_fit(model, processor, PROMPTS[0], [source], codes_NLK)
    for codes_LK, fit in zip(codes_NLK, fits_N, strict=True):
        losses = []
        for prompt in (PROMPTS[0], None):
            sample = processor.encode_drawing(prompt, codes_LK, sources=[source])
            batch = processor.collate([sample])
            h_TD = model.backbone(inputs_embeds=model.embed(batch.input_ids, batch.codes)).last_hidden_state[0]
            first = len(sample.ids) - 2 - len(codes_LK)
            logits_LKV = model.code_head(h_TD[first - 1 : first + 3], codes_LK)
            losses.append(torch.nn.functional.cross_entropy(logits_LKV.flatten(0, 1), codes_LK.flatten()) * 8)
        torch.testing.assert_close(fit, losses[1] - losses[0], atol=1e-4, rtol=1e-4)
    [chosen] = edit_images(model, processor, PICTURES[0], PROMPTS[0], candidates=3, temperature=1.0, seeds=2)
    [again, _] = edit_images(model, processor, PICTURES[:2], PROMPTS[:2], candidates=3, temperature=1.0, seeds=[2, 3])
    assert chosen.tobytes() == again.tobytes()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"images": []}, "1 prompts, 0 images: give one for each"),
        ({"images": PICTURES[:2]}, "1 prompts, 2 images: give one for each"),
        ({"images": [[]]}, "no image: give the picture that is to be changed"),
        ({"images": ["no_such.png"]}, "no image file at no_such.png"),
        ({"prompts": [" "]}, "empty prompt: say what to change"),
        ({"prompts": ["dog " * 300]}, "but the model reads 256"),
        ({"masks": [None, None]}, "1 prompts, 2 masks: give one for each"),
        ({"masks": _mask((0, 0, 9, 9), (32, 31))}, "the mask has 32 x 31 pixels, its picture 32 x 32: make them equal"),
        ({"masks": Image.new("L", (32, 32))}, "the mask has no alpha channel"),
        ({"masks": Image.new("RGBA", (32, 32), "red")}, "no pixel that is fully transparent"),
        ({"seeds": [1, 2]}, "1 prompts, 2 seeds"),
        ({"image_cfg_scale": 0.5}, "image_cfg_scale 0.5 is below 1"),
        ({"cfg_interval": (0.5, 1)}, "cfg_interval of an edit begins at 0, not at 0.5"),
    ],
)
def test_what_cannot_be_edited_is_named(editor, changed, told):
    with pytest.raises(ValueError, match=told):
        edit_images(*editor, **{"images": PICTURES[:1], "prompts": PROMPTS[:1], **changed})


def test_a_mask_beside_what_the_model_sees_is_named(editor):
    picture = _picture(0, (100, 32))
    with pytest.raises(ValueError, match="outside of the square that the model sees"):
        edit_images(*editor, picture, PROMPTS[0], _mask((0, 0, 20, 32), picture.size))
