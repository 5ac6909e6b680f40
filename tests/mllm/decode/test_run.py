"""Generation: cached equals uncached, batch equals single, guidance at one is none, a seed is an image."""

import pytest
import torch
from PIL import Image

from mllm import generate_images, generate_text, generate_texts
from mllm.codes import CODE_EMBEDDINGS, CODE_HEADS
from mllm.decode.options import Sampling
from mllm.decode.program import start_drawing
from mllm.decode.run import plan_drawings, sample_codes
from mllm.decode.sampling import NotFinite, Picker, filter_logits, gumbel, sample
from mllm.text.ids import plan_token

KINDS = [(embedding, head) for embedding in CODE_EMBEDDINGS for head in CODE_HEADS]
PROMPTS = ["a red dog", "two cats and a very long prompt about a bus", "a kite"]


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def model_and_processor(request, make_tiny_model):
    return make_tiny_model(*request.param)


def _generators(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _draw(model, processor, prompts, seeds=(0, 1, 2), **options):
    samples = [processor.encode_drawing(prompt) for prompt in prompts]
    return sample_codes(
        model,
        processor,
        samples,
        _generators(seeds[: len(prompts)]),
        **{"cfg_scale": 1.0, "temperature": 1.0, **options},
    )


def _chat(text="what is this?", color="red"):
    image = {"type": "image", "image": Image.new("RGB", (32, 32), color)}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


def test_greedy_codes_are_the_argmax_of_one_uncached_pass(model_and_processor):
    model, processor = model_and_processor
    codes_LK = _draw(model, processor, PROMPTS[:1], temperature=0)[0]
    batch = processor.collate([processor.encode_drawing(PROMPTS[0], codes_LK)])
    with torch.no_grad():
        h_BTD = model.backbone(inputs_embeds=model.embed(batch.input_ids, batch.codes)).last_hidden_state
        first = batch.input_ids[0].tolist().index(processor.boi_id)
        logits_LKV = model.code_head(h_BTD[0, first : first + processor.num_positions], codes_LK)
    assert torch.equal(logits_LKV.argmax(-1), codes_LK)


@pytest.mark.parametrize(
    "options", [{"cfg_scale": 1.0}, {"cfg_scale": 3.0}, {"cfg_scale": 3.0, "top_p": 0.9, "top_k": 5}]
)
def test_an_image_does_not_depend_on_its_batch(model_and_processor, options):
    model, processor = model_and_processor
    together = _draw(model, processor, PROMPTS, **options)
    for row, prompt in enumerate(PROMPTS):
        assert torch.equal(_draw(model, processor, [prompt], seeds=[row], **options)[0], together[row])


def test_images_are_equal_to_the_pixel_whatever_the_batch(tiny_model):
    model, processor = tiny_model
    together = generate_images(model, processor, PROMPTS, seeds=[5, 6, 7])
    for row, prompt in enumerate(PROMPTS):
        assert generate_images(model, processor, [prompt], seeds=5 + row)[0].tobytes() == together[row].tobytes()


def test_guidance_at_one_is_no_guidance_and_guidance_is_felt(model_and_processor):
    model, processor = model_and_processor
    logits_BV, doubled = torch.randn(2, 16), torch.randn(4, 16)
    assert torch.equal(Picker((), [], sampling=Sampling())(logits_BV, 0), logits_BV.argmax(-1))
    cond, uncond = doubled.chunk(2)
    guided = Picker((3.0,), [], sampling=Sampling())(doubled, 0)
    assert torch.equal(guided, (uncond + 3 * (cond - uncond)).argmax(-1).repeat(2))
    seen = []
    hook = model.backbone.norm.register_forward_hook(lambda _, __, h: seen.append(len(h)))
    _draw(model, processor, PROMPTS, cfg_scale=1.0)
    assert seen == [3] * processor.num_positions
    seen.clear()
    _draw(model, processor, PROMPTS, cfg_scale=2.0)
    assert seen == [4] + [6] * (processor.num_positions - 1)  # the unconditional prompt is read once
    hook.remove()


def test_a_seed_is_an_image(tiny_model):
    model, processor = tiny_model
    codes = [_draw(model, processor, PROMPTS[:1], seeds=[seed])[0] for seed in (0, 0, 1)]
    assert torch.equal(codes[0], codes[1]) and not torch.equal(codes[0], codes[2])


def test_sampling_follows_the_distribution():
    logits_BV = torch.log(torch.tensor([0.5, 0.3, 0.2])).expand(4000, 3)
    generator = torch.Generator().manual_seed(0)
    ids_B = sample(logits_BV, gumbel([generator] * 4000, 3, logits_BV.device))
    share = torch.bincount(ids_B, minlength=3) / 4000
    torch.testing.assert_close(share, torch.tensor([0.5, 0.3, 0.2]), atol=0.03, rtol=0)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (0, 0.01), (5, 1.0), (1, 1.0), (12, 0.8), (64, 0.99)])
def test_draws_are_the_largest_of_what_the_filters_keep(top_k, top_p):
    generator = torch.Generator().manual_seed(0)
    logits_BV = 2 * torch.randn(500, 32, generator=generator)
    noise_BV = gumbel([generator] * 500, 32, logits_BV.device)
    kept_BV = filter_logits(logits_BV / 0.9, top_k, top_p)
    assert torch.equal(sample(logits_BV, noise_BV, 0.9, top_k, top_p), (kept_BV + noise_BV).argmax(-1))


def test_the_noise_of_a_position_may_be_drawn_at_once():
    """So that seeds still give the images of earlier versions."""
    one, other = _generators([3, 3])
    at_once = gumbel([one], 24, torch.device("cpu"))
    assert torch.equal(at_once, torch.cat([gumbel([other], 8, torch.device("cpu")) for _ in range(3)], 1))


def test_filters_keep_the_likely_entries():
    logits_BV = torch.log(torch.tensor([[0.5, 0.1, 0.3, 0.1]]))
    assert filter_logits(logits_BV, top_k=2).isfinite().tolist() == [[True, False, True, False]]
    assert filter_logits(logits_BV, top_p=0.6).isfinite().tolist() == [[True, False, True, False]]
    assert filter_logits(logits_BV, top_p=0.01).isfinite().tolist() == [[True, False, False, False]]
    assert torch.equal(filter_logits(logits_BV), logits_BV)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0 is neither 0"),
        ({"temperature": float("nan")}, "temperature nan is neither 0"),
        ({"temperature": 1e-300}, "temperature 1e-300 is neither 0"),
        ({"cfg_scale": float("inf")}, "cfg_scale inf is below 1 or no number"),
        ({"cfg_scale": 0.5}, "cfg_scale 0.5 is below 1"),
        ({"top_k": -1}, "top_k -1 is negative"),
        ({"top_p": 0.0}, "top_p 0.0 is outside"),
    ],
)
def test_impossible_sampling_is_named(tiny_model, options, message):
    with pytest.raises(ValueError, match=message):
        generate_images(*tiny_model, ["a dog"], **options)


def test_impossible_prompts_are_named(tiny_model):
    with pytest.raises(ValueError, match="empty prompt"):
        generate_images(*tiny_model, ["  "])
    with pytest.raises(ValueError, match="but the model reads 256: shorten"):
        generate_images(*tiny_model, ["dog " * 25_000])
    with pytest.raises(ValueError, match="no Unicode, at position 2"):
        generate_images(*tiny_model, ["a \udcff"])
    with pytest.raises(ValueError, match="2 prompts, 1 seeds"):
        generate_images(*tiny_model, ["a", "b"], seeds=[1])
    assert generate_images(*tiny_model, []) == []


def test_greedy_text_is_the_argmax_of_uncached_passes(model_and_processor):
    model, processor = model_and_processor
    sequence = processor.encode(_chat())
    ids = []
    for _ in range(6):
        batch = processor.collate([sequence], model.image_tokenizer)
        with torch.no_grad():
            ids.append(int(model(batch.input_ids, batch.codes).logits[0, -1].argmax()))
        if ids[-1] in (processor.eos_id, processor.boi_id):
            break
        sequence.add(ids[-1:])
    assert generate_texts(model, processor, [_chat()], max_new_tokens=6) == [processor.decode(ids)]


def test_answers_do_not_depend_on_their_batch(model_and_processor):
    model, processor = model_and_processor
    chats = [_chat(), _chat("where is the dog?", "blue"), [{"role": "user", "content": "hello"}]]
    together = generate_texts(model, processor, chats, max_new_tokens=8)
    assert together == [generate_texts(model, processor, [chat], max_new_tokens=8)[0] for chat in chats]


def test_streamed_pieces_join_to_the_whole_answer(tiny_model):
    model, processor = tiny_model
    pieces = list(generate_text(model, processor, _chat(), max_new_tokens=12))
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    whole = generate_texts(model, processor, [_chat()], max_new_tokens=12)[0]
    assert text == whole.rstrip("\ufffd")


def test_the_model_may_decide_to_draw(make_tiny_model):
    """A begin-of-image id in the text switches to image codes and back, and the text goes on after the image."""
    model, processor = make_tiny_model()
    wanted = iter([processor.boi_id, processor.eos_id])
    model.lm_head.register_forward_hook(lambda _, __, logits: _only(logits, next(wanted)))
    pieces = list(generate_text(model, processor, _chat("draw a dog"), seed=3))
    assert [type(piece) for piece in pieces] == [Image.Image] and pieces[0].size == (32, 32)


def _only(logits: torch.Tensor, wanted: int) -> torch.Tensor:
    return torch.full_like(logits, -10.0).index_fill_(-1, torch.tensor([wanted]), 10.0)


def test_text_ends_at_the_limit(tiny_model):
    model, processor = tiny_model
    with pytest.raises(ValueError, match="and 300 to generate, but the model reads 256"):
        list(generate_text(model, processor, _chat(), max_new_tokens=300))


@pytest.fixture(scope="module")
def planner(make_tiny_model):
    """A model that writes up to 5 ids before it draws."""
    model, processor = make_tiny_model()
    model.config.plan_length = 5
    return model, processor


def _starts(model, processor, prompts):
    return [start_drawing(model, processor, prompt) for prompt in prompts]


def test_a_plan_stands_between_the_prompt_and_the_image_that_follows_it(planner):
    model, processor = planner
    starts, generators = _starts(model, processor, PROMPTS[:1]), _generators([3])
    [sample] = plan_drawings(model, processor, starts, generators, temperature=0.5)
    plan = sample.ids[len(starts[0].ids) : -1]
    assert sample.ids == [*starts[0].ids, *plan, processor.boi_id] and 0 < len(plan) <= 5
    codes_NLK = sample_codes(model, processor, [sample], generators, cfg_scale=3.0)
    [drawn] = generate_images(model, processor, PROMPTS[:1], seeds=3)
    assert drawn.tobytes() == model.decode_image_tokens(codes_NLK)[0].tobytes()
    other = sample_codes(model, processor, [processor.encode_drawing(PROMPTS[0])], _generators([3]), cfg_scale=3.0)
    assert not torch.equal(other, codes_NLK)


def test_plans_and_their_images_do_not_depend_on_the_batch(planner):
    model, processor = planner
    starts = _starts(model, processor, PROMPTS)
    together = plan_drawings(model, processor, starts, _generators([5, 6, 7]))
    alone = [plan_drawings(model, processor, [start], _generators([5 + n]))[0] for n, start in enumerate(starts)]
    assert [sample.ids for sample in together] == [sample.ids for sample in alone]
    images = generate_images(model, processor, PROMPTS, seeds=[5, 6, 7])
    for row, prompt in enumerate(PROMPTS):
        assert generate_images(model, processor, [prompt], seeds=5 + row)[0].tobytes() == images[row].tobytes()


def test_plans_in_ids_of_their_own_hold_nothing_else(make_tiny_model):
    model, processor = make_tiny_model(plan_length=5)
    starts = _starts(model, processor, ["a dog"])
    lengths = set()
    for seed in range(8):
        [sample] = plan_drawings(model, processor, starts, _generators([seed]), temperature=5.0)
        *plan, end = sample.ids[len(starts[0].ids) :]
        assert set(plan) <= processor.plan_ids and end == processor.boi_id
        lengths.add(len(plan))
    assert max(lengths) == 5


def test_plans_in_a_chat_are_not_shown(make_tiny_model):
    """The first id of a plan ends the text. The plan is written anew, by the options of drawings, and an image follows
    it, however little room was left for text. A text without drawings ends there."""
    model, processor = make_tiny_model(plan_length=5)
    [word] = processor.encode("zebra").ids[2:-1][:1]
    a, b = sorted(processor.plan_ids)[:2]
    heard = []

    def write(*ids):
        wanted = iter(ids)
        hook = lambda _, __, logits: heard.append(len(heard)) or _only(logits, next(wanted))  # noqa: E731
        return model.lm_head.register_forward_hook(hook)

    for ids, limit in (([word, a, b, a, processor.boi_id, processor.eos_id], 64), ([word, a, *[b] * 5], 2)):
        hook = write(*ids)
        *texts, image = [piece for piece in generate_text(model, processor, _chat("draw"), limit, seed=3)]
        hook.remove()
        assert "".join(texts) == processor.decode([word]) and image.size == (32, 32)
    assert len(heard) == 6 + 7
    hook = write(word, a)
    assert generate_texts(model, processor, [_chat("draw")], seeds=[3]) == [processor.decode([word])]
    hook.remove()


def test_what_looks_like_a_plan_is_text(make_tiny_model):
    model, processor = make_tiny_model(plan_length=5)
    words = plan_token("thing dog")
    ids = processor.encode([{"role": "user", "content": words}]).ids
    assert not processor.plan_ids & set(ids) and processor.decode(ids) == words
    plan = processor.encode([{"role": "user", "content": [{"type": "plan", "plan": ["thing dog"]}]}]).ids
    assert len(processor.plan_ids & set(plan)) == 1 and processor.decode(plan) == ""
    assert processor.post_process_image_text_to_text([plan]) == [""]
    with pytest.raises(ValueError, match="the text tokenizer has no <plan thing moon>"):
        processor.encode_drawing("a moon", plan=["thing moon"])


def test_a_model_without_plans_draws_at_once(tiny_model):
    model, processor = tiny_model
    samples = plan_drawings(model, processor, _starts(model, processor, PROMPTS), _generators([0, 1, 2]))
    assert [sample.ids for sample in samples] == [processor.encode_drawing(prompt).ids for prompt in PROMPTS]


def test_the_placeholder_of_images_is_never_written(planner):
    model, processor = planner
    starts = _starts(model, processor, ["a dog"] * 40)
    samples = plan_drawings(model, processor, starts, _generators(range(40)), temperature=5.0)
    assert len({str(sample.ids) for sample in samples}) > 1
    assert all(processor.image_id not in sample.ids for sample in samples)
    with torch.no_grad():
        logits_BS = model.text_logits(torch.randn(2, 32))
    assert (logits_BS == float("-inf")).nonzero()[:, 1].tolist() == [processor.image_id] * 2


def test_there_must_be_room_for_a_plan(make_tiny_model):
    model, processor = make_tiny_model()
    model.config.plan_length = 250
    with pytest.raises(ValueError, match="254 to generate, but the model reads 256"):
        generate_images(model, processor, ["a dog"])


@pytest.mark.parametrize(("option", "value"), [("temperature", -1.0), ("top_p", 0.0)])
def test_bad_options_are_refused_before_a_plan_is_written(planner, option, value):
    model, processor = planner
    with pytest.raises(ValueError, match=f"{option} {value}"):
        plan_drawings(model, processor, _starts(model, processor, ["a dog"]), _generators([0]), **{option: value})


def test_one_prompt_without_numbers_among_others_is_one_line(make_tiny_model):
    """It fails at its first position, where the others' images begin."""
    model, processor = make_tiny_model()
    known = processor.encode_drawing("a red dog").ids
    straw = next(id for id in processor.encode_drawing("zebra").ids if id not in known)
    with torch.no_grad():
        model.get_input_embeddings().weight[straw] = torch.nan
    for prompts in (["a red dog", "zebra"], ["zebra", "a red dog"]):
        with pytest.raises(NotFinite, match="the model's logits are not finite"):
            generate_images(model, processor, prompts, cfg_scale=1.0)
