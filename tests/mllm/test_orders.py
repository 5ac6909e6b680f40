"""Orders: what a step draws is what training predicts, for every way of computing it."""

import pytest
import torch
from PIL import Image
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mllm import Mllm, edit_images, generate_images
from mllm.codes import CODE_EMBEDDINGS
from mllm.config import CACHE
from mllm.decode.batch import Batch
from mllm.decode.engine import Engine
from mllm.decode.options import DrawingOptions, Sampling
from mllm.decode.program import Chat, Drawing, Preview, Track, Write, draw_steps
from mllm.decode.run import run_tracks, sample_codes
from mllm.fast import BACKENDS
from mllm.orders import ORDERS
from tokenizer import ImageTokenizerConfig
from training.lm.update import packed_mask

SIDE, L = 4, 16
PARALLEL = [name for name, order in ORDERS.items() if order.parallel]
STEPS = {"raster": 16, "wavefront": 7, "groups": 4, "locality": 5, "scales": 3}
NARROW = {"width": 16, "hidden": 24}


@pytest.fixture(params=PARALLEL)
def ordered(request, make_tiny_model):
    """4 x 4 positions, with weights large enough that positions differ."""
    return _wide(*make_tiny_model(order=request.param, **_layout(request.param)))


def _layout(order: str, side: int = SIDE) -> dict:
    """Sizes of an image tokenizer whose images this order draws."""
    if ORDERS[order].layout != "scales":
        return {"image_size": 16 * side}
    scales = [scale for scale in (1, 2, 4, 8) if scale <= side]
    return {"image_size": 16 * side, "layout": "scales", "layout_args": {"scales": scales}, "projection": "linear"}


def _wide(model, processor):
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith(("backbone.layers", "code_", "image_layers", "order")):
                weight.mul_(3.0)
    return model, processor


def _codes(seed: int = 0, positions: int = L) -> torch.Tensor:
    return torch.randint(0, 16, (positions, 2), generator=torch.Generator().manual_seed(seed))


def _logits(model, processor, codes_LK: torch.Tensor, prompt: str | None = "a red dog", steps: int = 0) -> torch.Tensor:
    """Teacher forced, in the order of drawing."""
    batch = processor.collate([processor.encode_drawing(prompt, codes_LK)])
    with torch.no_grad():
        x_BTD, drawn = model.embed(batch.input_ids, batch.codes), torch.tensor([0])
        h_BTD = model.run_layers(x_BTD, batch.input_ids, drawn, steps).last_hidden_state
        h_NLD, codes_NLK = model.predictors(h_BTD, batch.input_ids, batch.codes, drawn)
        return model.code_head(h_NLD[0], codes_NLK[0])


def _draw(model, processor, kernels: str = "auto", prompt: str = "a red dog", **options) -> Track:
    drawing, L = DrawingOptions(**{"temperature": 1.0, "cfg_scale": 1.0, **options}), processor.num_positions

    def steps(track):
        return draw_steps(track, model.order, L)

    def talk(_):
        for _ in range(4):
            yield Write(Sampling())

    rest = [processor.encode_drawing(None)] if drawing.cfg_scales else []
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    tracks = [
        Track(processor.encode_drawing(words), steps, generator, L, drawing, unconditional=rest, scored=True)
        for words, generator in zip((prompt, "two cats and a kite"), generators, strict=False)
    ]
    chat = Track(processor.encode([{"role": "user", "content": "hello"}]), talk, generators[2], 4)
    run_tracks(Batch(model, processor, kernels), [chat, *tracks])  # rows of one position beside rows of several
    return tracks[0]


@pytest.mark.parametrize("side", [2, 4, 8])
@pytest.mark.parametrize("name", ORDERS)
def test_each_place_is_drawn_once_from_the_step_before(name, side):
    sizes = ImageTokenizerConfig(**_layout(name, side))
    order, L = ORDERS[name](sizes, 8), sizes.num_positions
    assert sorted(order.places) == list(range(L))
    assert side != SIDE or len(order.steps) == STEPS[name]
    before = range(-1, 0)
    for step in order.steps:
        slots = range(step.first, step.first + len(step.places))
        if order.asks:
            assert step.sources[0] == (len(before) if step.first else 0)  # queries follow the codes of the step before
        else:
            assert all(order.sources[slot] in before and order.ends[slot] == slots.stop for slot in slots)
        before = slots
    codes = torch.randn(2, L, 3)
    assert torch.equal(order.of_places(order.of_slots(codes, 1), 1), codes)
    if name == "wavefront":
        assert all(len({sum(divmod(place, side)) for place in step.places}) == 1 for step in order.steps)
        neighbours = {
            place - order.places[order.sources[slot]] for slot, place in enumerate(order.places) if slot
        }  # left and above
        assert neighbours <= {1, side}


@pytest.mark.parametrize("kernels", BACKENDS)
@pytest.mark.parametrize(
    "more", [{}, {"code_embedding": "placed_tables"}, {"code_embedding": "codebook"}, {"image_layers": NARROW}], ids=str
)
@pytest.mark.parametrize("order", PARALLEL)
def test_a_drawing_has_the_probability_that_training_gives_it(make_tiny_model, order, more, kernels):
    """In a batch with a text and with a drawing of another length."""
    model, processor = _wide(*make_tiny_model(order=order, **_layout(order), **more))
    track = _draw(model, processor, kernels)
    logps_LKV = _logits(model, processor, track.result).log_softmax(-1)
    codes_LK = model.order.of_slots(track.result, 0)
    expected = logps_LKV.gather(-1, codes_LK[..., None])[..., 0]
    torch.testing.assert_close(torch.stack(track.logps), expected, atol=2e-4, rtol=1e-3)
    assert expected.std() > 0.05  # positions differ


def test_no_position_sees_the_codes_of_its_step(ordered):
    """Nor of later ones; those of earlier steps count."""
    model, processor = ordered
    codes_LK = _codes(0, processor.num_positions)
    logits = _logits(model, processor, codes_LK)
    step = model.order.steps[len(model.order.steps) // 2]
    changed = codes_LK.clone()
    changed[list(step.places)] = (changed[list(step.places)] + 5) % 16
    others = _logits(model, processor, changed)
    end = step.first + len(step.places)
    # The first sub-code: later ones are told the earlier ones of their own position.
    torch.testing.assert_close(others[:end, 0], logits[:end, 0], atol=1e-5, rtol=1e-5)
    assert ((others[end:, 0] - logits[end:, 0]).abs().amax(1) > 1e-4).all()


@pytest.mark.parametrize("options", [{"cfg_scale": 3.0}, {"cfg_scale": 3.0, "cfg_interval": (0.4, 1.0)}], ids=str)
@pytest.mark.parametrize("embedding", CODE_EMBEDDINGS)
@pytest.mark.parametrize("order", PARALLEL)
def test_guidance_may_begin_late(make_tiny_model, order, embedding, options):
    """Guided logits are those of the two passes, from the step on in which guidance begins."""
    model, processor = _wide(*make_tiny_model(embedding, order=order, **_layout(order)))
    track = _draw(model, processor, **options)
    guided = [_logits(model, processor, track.result, prompt) for prompt in ("a red dog", None)]
    drawing = DrawingOptions(**options)
    L = processor.num_positions
    scales = [drawing.cfg_scales_at(step.first, L) or (1.0,) for step in model.order.steps for _ in step.places]
    logits_LKV = torch.lerp(guided[1], guided[0], torch.tensor(scales)[..., None])
    expected = logits_LKV.log_softmax(-1).gather(-1, model.order.of_slots(track.result, 0)[..., None])[..., 0]
    torch.testing.assert_close(torch.stack(track.logps), expected, atol=5e-4, rtol=1e-3)


def test_the_loss_is_that_of_the_logits(ordered):
    model, processor = ordered
    codes_LK = _codes(3, processor.num_positions)
    output = model(**vars(processor.collate([processor.encode_drawing("a red dog", codes_LK)])))
    logps_LKV = _logits(model, processor, codes_LK).log_softmax(-1)
    expected = -logps_LKV.gather(-1, model.order.of_slots(codes_LK, 0)[..., None]).sum()
    torch.testing.assert_close(output.code_loss, expected, rtol=1e-4, atol=1e-4)
    output.loss.backward()
    assert model.order.aims.weight.grad.abs().amax(1).all()
    model.zero_grad()


def test_rows_that_are_padded_packed_or_go_on_see_the_same(ordered):
    """A chat with a picture, then text; alone, padded on either side, after another in one row, and in two passes."""
    model, processor = ordered
    codes_LK = _codes(1, processor.num_positions)
    image = {"type": "image", "image": codes_LK}
    chats = [
        processor.encode([{"role": "user", "content": [image, {"type": "text", "text": text}]}])
        for text in ("what is this?", "a longer question about it")
    ]
    alone = [_text_logits(model, **vars(processor.collate([chat])))[0] for chat in chats]
    for left in (False, True):
        batch = processor.collate(chats, left=left)
        together = _text_logits(model, **vars(batch))
        for row, expected in enumerate(alone):
            real = together[row][batch.attention_mask[row].bool()]
            torch.testing.assert_close(real, expected, atol=1e-4, rtol=1e-4)
    ids = torch.tensor([chats[0].ids])
    with torch.no_grad():
        start = model(input_ids=ids[:, :-2], codes=codes_LK[None], use_cache=True)
        rest = model(input_ids=ids[:, -2:], **{CACHE: start[CACHE]})
    torch.testing.assert_close(torch.cat([start.logits, rest.logits], 1)[0], alone[0], atol=1e-4, rtol=1e-4)


def _text_logits(model, labels=None, is_target=None, **batch) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


def test_the_server_draws_what_a_call_draws(ordered):
    model, processor = ordered
    options = {"cfg_scale": 2.0, "temperature": 0.9}
    drawings = [Drawing("a red dog", seed=1, previews=2, **options), Drawing("two cats", seed=2, candidates=2)]
    with Engine(model, processor, max_rows=4) as engine:
        chat = engine.submit(Chat("hello", 6, drawing=None))
        handles = [engine.submit(drawing) for drawing in drawings]
        *previews, first = handles[0].result(60)
        [second] = handles[1].result(60)
        chat.result(60)
    alone = generate_images(model, processor, ["a red dog"], 1, **options)
    assert first.tobytes() == alone[0].tobytes()
    assert second.tobytes() == generate_images(model, processor, ["two cats"], 2, candidates=2)[0].tobytes()
    assert handles[0].program.tokens == processor.num_positions
    if not model.image_tokenizer.layout.on_grid:
        assert previews == []
        return
    assert len(previews) == 2 and all(isinstance(preview, Preview) for preview in previews)
    for preview in previews:
        shown, drawn = preview.image(model), set(model.order.places[: len(preview.codes_PK)])
        assert shown.size == first.size and 0 < preview.done < 1
        middles = {place: (16 * (place % SIDE) + 8, 16 * (place // SIDE) + 8) for place in range(L)}
        assert {place for place, at in middles.items() if shown.getpixel(at)[3]} == drawn


def test_an_edit_keeps_the_positions_outside_its_mask(ordered):
    """Of the top left four, some steps draw one or two, and keep the others."""
    model, processor = ordered
    picture, mask = Image.new("RGB", (64, 64), "red"), Image.new("RGBA", (64, 64), "white")
    mask.paste((0, 0, 0, 0), (0, 0, 20, 20))
    if not model.image_tokenizer.layout.on_grid:
        with pytest.raises(ValueError, match="codes have no place in the picture: edit without a mask"):
            edit_images(model, processor, picture, "make it blue", mask)
        return
    hook = model.lm_head.register_forward_hook(
        lambda _, __, logits: logits.index_fill(-1, torch.tensor([processor.boi_id]), 100.0)
    )
    seen, decode = [], model.decode_image_tokens
    model.decode_image_tokens = lambda codes: seen.append(codes) or decode(codes)
    try:
        edit_images(model, processor, picture, "make it blue", mask, temperature=1.0, candidates=2, seeds=4)
    finally:
        del model.decode_image_tokens
        hook.remove()
    before = model.image_tokenizer.encode([picture])[0]
    changed = (seen[0][0] != before).any(1).nonzero()[:, 0].tolist()
    assert changed and set(changed) <= {0, 1, 4, 5}


def test_gradients_of_codes_reach_the_places_they_come_from(ordered):
    """As the image tokenizer is tuned: slots are fed in another order than places are encoded."""
    model, processor = ordered
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    options = model.image_tokenizer.quantizer.Options(index_temperature=0.05)
    quantized = model.image_tokenizer.quantizer(model.image_tokenizer.features(pixels), options)
    shares = quantized.shares_KMV.detach().requires_grad_()
    ids = torch.tensor([processor.encode_drawing("a dog", quantized.codes_NLK[0]).ids])
    x_BTD = model.embed(ids, quantized.codes_NLK, quantized._replace(shares_KMV=shares))
    torch.testing.assert_close(x_BTD, model.embed(ids, quantized.codes_NLK))
    slot = 6
    x_BTD[0, ids[0].tolist().index(processor.image_id) + slot].square().sum().backward()
    assert shares.grad.abs().sum((0, 2)).nonzero().tolist() == [[model.order.places[slot]]]


@pytest.mark.parametrize(
    ("order", "size", "told"),
    [
        ("spiral", 64, "unknown order 'spiral'; known: raster, wavefront, groups, locality, scales"),
        ("groups", 48, "order 'groups': 3 x 3 positions are no whole squares of 2 x 2"),
    ],
)
def test_what_does_not_fit_is_one_line(make_tiny_model, order, size, told):
    with pytest.raises(ValueError, match=told):
        make_tiny_model(order=order, image_size=size)


def test_weights_of_another_order_are_refused(ordered, tmp_path):
    model, _ = ordered
    model.save_pretrained(tmp_path)
    loaded = Mllm.from_pretrained(tmp_path)
    assert loaded.config.order == model.config.order and loaded.weights_hash() == model.weights_hash()
    config = (tmp_path / "config.json").read_text().replace(f'"order": "{model.config.order}"', '"order": "raster"')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="weights and config disagree on 1 tensors, e.g. order.aims.weight"):
        Mllm.from_pretrained(tmp_path)


def test_a_model_that_draws_row_by_row_may_learn_another_order(make_tiny_model):
    model, processor = make_tiny_model("placed_tables", image_size=16 * SIDE)
    before, codes_LK = model.code_embed(_codes()[None])[0].detach(), _codes()
    model.draw_in("wavefront")
    embeds_LD = model.code_embed(model.order.of_slots(codes_LK, 0)[None])[0]
    assert torch.equal(model.order.of_places(embeds_LD, 0), before)
    assert model.config.order == "wavefront" and len(_draw(model, processor).result) == L
    with pytest.raises(ValueError, match="unknown order 'spiral'"):
        model.draw_in("spiral")


@pytest.mark.parametrize("side", [3, 8])
def test_places_of_a_step_are_far_from_each_other_and_near_to_earlier_ones(side):
    order = ORDERS["locality"](ImageTokenizerConfig(image_size=16 * side), 8)
    for count in range(order.fewest, side * side + 1):
        steps = order.steps_in(count)
        assert len(steps) == count and [place for step in steps for place in step.places] == order.places
        assert len(steps[0].places) == 1
    neighbours = [
        sum(abs(row - r) + abs(column - c) == 1 for r, c in (divmod(other, side) for other in step.places))
        for step in order.steps
        for row, column in (divmod(place, side) for place in step.places)
    ]
    assert sum(map(bool, neighbours)) < side * side / 4


def test_as_many_steps_as_one_likes(make_tiny_model):
    """Drawings in other numbers of steps, together in one batch: each as training sees it, and as alone."""
    model, processor = _wide(*make_tiny_model("codebook", order="locality", image_size=16 * SIDE))
    counts, passes = (4, 0, 16), []
    hook = model.backbone.norm.register_forward_hook(lambda *_: passes.append(1))

    def tracks(counts):
        drawings = [DrawingOptions(temperature=1.0, cfg_scale=1.0, steps=count) for count in counts]
        return [
            Track(
                processor.encode_drawing("a red dog"),
                lambda track: draw_steps(track, model.order, L),
                torch.Generator().manual_seed(0),
                L,
                drawing,
                scored=True,
            )
            for drawing in drawings
        ]

    together = tracks(counts)
    run_tracks(Batch(model, processor, "eager"), together)
    assert len(passes) == 16
    for count, track in zip(counts, together, strict=True):
        passes.clear()
        [alone] = run_tracks(Batch(model, processor, "eager"), tracks([count]))
        assert torch.equal(alone, track.result) and len(passes) == (count or STEPS["locality"])
        logps_LKV = _logits(model, processor, track.result, steps=count).log_softmax(-1)
        expected = logps_LKV.gather(-1, model.order.of_slots(track.result, 0)[..., None])[..., 0]
        torch.testing.assert_close(torch.stack(track.logps), expected, atol=2e-4, rtol=1e-3)
    hook.remove()


def test_training_asks_in_all_numbers_of_steps(make_tiny_model):
    """With two images to draw in a row, after one to read, packed or not."""
    model, processor = _wide(*make_tiny_model(order="locality", image_size=16 * SIDE))
    model.train()
    samples = [
        processor.encode_drawing("a red dog", _codes(1)),
        processor.encode_drawing("two cats", _codes(2), sources=[_codes(3)]),
    ]
    counts, losses = [4, 5, 16], []
    for count in counts:
        model.order.some_count = lambda count=count: count
        apart = [model(**vars(processor.collate([sample]))) for sample in samples]
        packed = processor.collate(samples, pack=128)
        together = model(**{**vars(packed), "attention_mask": packed_mask(packed.position_ids)})
        assert len(packed.input_ids) == 1
        losses.append(sum(output.code_loss for output in apart))
        torch.testing.assert_close(together.code_loss, losses[-1], rtol=1e-4, atol=1e-3)
        expected = sum(output.text_loss for output in apart)
        torch.testing.assert_close(together.text_loss, expected, rtol=1e-4, atol=1e-3)
    assert len({round(loss.item(), 3) for loss in losses}) == len(counts)
    order = ORDERS["locality"](ImageTokenizerConfig(image_size=16 * SIDE), 8)
    drawn = {order.some_count() for _ in range(200)}
    assert drawn == set(range(4, L + 1))


@pytest.mark.slow
def test_a_picture_that_was_learned_is_drawn_in_all_numbers_of_steps(make_tiny_model):
    model, processor = make_tiny_model(order="locality", image_size=16 * SIDE)
    batch = vars(processor.collate([processor.encode_drawing("a red dog", _codes(1))]))
    trained = [weight for name, weight in model.named_parameters() if not name.startswith("image_tokenizer")]
    optimizer = torch.optim.AdamW(trained, 1e-2)
    model.train()
    for _ in range(120):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    start = processor.encode_drawing("a red dog")
    for steps in (4, 0, 16):
        generator = torch.Generator().manual_seed(0)
        drawn = sample_codes(model.eval(), processor, [start], [generator], temperature=0.0, cfg_scale=1.0, steps=steps)
        assert torch.equal(drawn[0], _codes(1))


@pytest.mark.parametrize(
    ("order", "steps", "told"),
    [
        ("raster", 4, "steps 4: this model draws an image in 16; leave steps out"),
        ("locality", 3, "steps 3: order 'locality' was trained to draw an image in 4 to 16"),
        ("locality", 17, "steps 17: order 'locality' was trained to draw an image in 4 to 16"),
    ],
)
def test_steps_that_an_order_cannot_do_are_one_line(make_tiny_model, order, steps, told):
    model, processor = make_tiny_model(order=order, image_size=16 * SIDE)
    with pytest.raises(ValueError, match=told):
        generate_images(model, processor, ["a red dog"], steps=steps)
    with pytest.raises(ValueError, match=told), Engine(model, processor) as engine:
        engine.submit(Drawing("a red dog", steps=steps))


@pytest.mark.parametrize("layout", ["grid", "queries", "scales"])
@pytest.mark.parametrize("order", ORDERS)
def test_an_order_draws_one_layout_or_all(make_tiny_model, order, layout):
    args = {"grid": {}, "queries": {"positions": 4}, "scales": {"scales": [1, 2]}}[layout]
    sizes = {"layout": layout, "layout_args": args, "projection": "linear"}
    if order == "raster" or layout == {"scales": "scales"}.get(order, "grid"):
        model, _ = make_tiny_model(order=order, **sizes)
        assert len(model.order.places) == model.config.image_tokenizer_config.num_positions
        return
    with pytest.raises(ValueError, match=f"order '{order}' draws layout '.*', not '{layout}': take raster"):
        make_tiny_model(order=order, **sizes)


def test_a_map_is_drawn_in_one_step_from_the_middles_of_the_map_before():
    sizes = {"image_size": 48, "layout": "scales", "projection": "linear", "layout_args": {"scales": [1, 2, 3]}}
    order = ORDERS["scales"](ImageTokenizerConfig(**sizes), 8)
    assert [list(step.places) for step in order.steps] == [[0], [1, 2, 3, 4], [*range(5, 14)]]
    assert order.sources == [-1, *[0] * 4, 1, 2, 2, 3, 4, 4, 3, 4, 4]


def test_previews_of_scales_are_whole_maps(make_tiny_model):
    sizes = _layout("scales") | {"layout_args": {"scales": [1, 2, 4], "tail_drop": True}}
    model, processor = make_tiny_model(order="scales", **sizes)
    passes = []
    hook = model.backbone.norm.register_forward_hook(lambda *_: passes.append(1))
    options = {"temperature": 1.0, "cfg_scale": 1.0}
    [alone] = generate_images(model, processor, ["a red dog"], 1, kernels="eager", **options)
    hook.remove()
    assert len(passes) == 3
    with Engine(model, processor) as engine:
        *previews, drawn = engine.submit(Drawing("a red dog", seed=1, previews=2, **options)).stream(60)
    assert drawn.tobytes() == alone.tobytes()
    assert [len(preview.codes_PK) for preview in previews] == [1, 5]
    assert all(preview.image(model).getchannel("A").getbbox() == (0, 0, *drawn.size) for preview in previews)


@pytest.mark.parametrize("more", [{}, {"image_layers": NARROW}], ids=str)
def test_masks_have_the_precision_of_the_model(make_tiny_model, more):
    """Kernels of GPUs take no other."""
    given = set()

    def attend(module, query, key, value, attention_mask, **kwargs):
        given.add((query.dtype, attention_mask.dtype))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("told", attend)
    model, processor = make_tiny_model(order="wavefront", image_size=16 * SIDE, **more)
    model.bfloat16().set_attn_implementation("told")
    batch = processor.collate([processor.encode_drawing("a red dog", _codes())])
    h_BTD = model.run_layers(model.embed(batch.input_ids, batch.codes), batch.input_ids).last_hidden_state
    assert given == {(torch.bfloat16, torch.bfloat16)} and h_BTD.isfinite().all()
