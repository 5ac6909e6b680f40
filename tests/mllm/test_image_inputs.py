"""What is read of images, and at how many positions; a new entry of the dicts is tested by being listed."""

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mllm import Mllm, Processor, edit_images, generate_images, generate_text, generate_texts
from mllm.decode.options import DrawingOptions
from mllm.decode.program import candidate_generators, start_drawing
from mllm.decode.rerank import fit
from mllm.decode.run import sample_codes
from mllm.decode.stream import read_images
from mllm.image_inputs import IMAGE_INPUTS, SHORTENINGS, divprune, pool
from mllm.orders import ORDERS

L, LENGTHS = 16, [16, 4, 1]
DRAWING = {"temperature": 1.0, "cfg_scale": 1.0}
ON_GRID = [name for name, order in ORDERS.items() if order.layout in (None, "grid")]
READ_FEATURES = [name for name, kind in IMAGE_INPUTS.items() if kind.reads_features]


def _picture(seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 255, (4, 4, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((64, 64))


def _chat(*images, words: str = "what is this?") -> list[dict]:
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": words}]}]


def _wide(model: Mllm) -> Mllm:
    """With weights large enough that what is read changes what is said."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith(("backbone.layers", "code_embed", "image_input")):
                weight.mul_(5.0)
        for name, weight in model.named_parameters():
            if name.endswith("gate_D"):
                weight.fill_(3.0)
    return model


def _picture_of(model: Mllm, codes_LK: torch.Tensor) -> Image.Image:
    return model.decode_image_tokens(codes_LK[None])[0]


@pytest.fixture
def make(make_tiny_model):
    """4 x 4 positions."""

    def make(name: str = "codes", **options) -> tuple[Mllm, Processor]:
        model, processor = make_tiny_model(image_input=name, image_lengths=LENGTHS, image_size=64, **options)
        return _wide(model), processor

    return make


def _logits(model: Mllm, processor: Processor, chats: list) -> torch.Tensor:
    """At the last id of each."""
    batch = processor.collate([processor.encode(chat) for chat in chats], model.image_tokenizer, left=True)
    places_BT = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(**{**vars(batch), "labels": None, "position_ids": places_BT}, logits_to_keep=1).logits[:, 0]


@pytest.mark.parametrize("name", IMAGE_INPUTS)
def test_every_input_learns_answers_and_is_loaded(make, name, tmp_path):
    model, processor = make(name)
    model.train().image_tokenizer.eval()
    trained = [p for n, p in model.named_parameters() if not n.startswith("image_tokenizer")]
    optimizer, losses, samples = torch.optim.AdamW(trained, 3e-3), [], []
    for length in LENGTHS:
        processor.image_length = length
        chat = [*_chat(_picture(length)), {"role": "assistant", "content": "a dog"}]
        samples += [processor.encode(chat, open_answer=False), processor.encode_drawing("a dog", _picture(7))]
    for _ in range(6):
        output = model(**vars(processor.collate(samples, model.image_tokenizer)))
        optimizer.zero_grad()
        output.loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.image_input.parameters())
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.9 * losses[0]
    model.eval()
    processor.image_length = 4
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    loaded = Mllm.from_pretrained(tmp_path).eval(), Processor.from_pretrained(tmp_path)
    assert loaded[1].image_length == 4 and loaded[0].config.image_lengths == LENGTHS
    chat = _chat(_picture())
    assert torch.equal(_logits(*loaded, [chat]), _logits(model, processor, [chat]))
    assert generate_texts(*loaded, chat, 6) == generate_texts(model, processor, chat, 6)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", IMAGE_INPUTS)
def test_transformers_reads_what_we_read(make, name, length):
    model, processor = make(name)
    processor.image_length = length
    chat = _chat(_picture(1), _picture(2))
    inputs = processor.apply_chat_template(
        chat, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    assert (inputs["input_ids"] == processor.image_id).sum() == 2 * length
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits[:, -1], _logits(model, processor, [chat]))
    written = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    said = processor.decode(written[0, inputs["input_ids"].shape[1] :])
    assert said == "".join(generate_text(model, processor, chat, 4, drawing=None))


@pytest.mark.parametrize("name", IMAGE_INPUTS)
def test_an_image_is_read_alike_in_any_batch_and_each_length_counts(make, name):
    model, processor = make(name)
    chats = [_chat(_picture(1)), _chat(_picture(2), _picture(3), words="which?"), _chat(words="hello")]
    by_length = []
    for length in LENGTHS:
        processor.image_length = length
        alone = torch.cat([_logits(model, processor, [chat]) for chat in chats])
        torch.testing.assert_close(_logits(model, processor, chats), alone, atol=1e-4, rtol=1e-4)
        by_length.append(alone)
    for one, other in combinations(by_length, 2):
        assert not torch.allclose(one[0], other[0], atol=1e-2) and torch.equal(one[2], other[2])


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", IMAGE_INPUTS)
@pytest.mark.parametrize("order", ON_GRID)
def test_drawing_is_that_of_codes_bit_for_bit(make, make_tiny_model, order, name, length):
    model, processor = make(name, order=order)
    plain, plain_processor = make_tiny_model(order=order, image_size=64)
    weights = {n: w for n, w in model.state_dict().items() if not n.startswith("image_input")}
    plain.load_state_dict(weights)
    processor.image_length = length
    codes_LK = torch.randint(0, 16, (L, 2), generator=torch.Generator().manual_seed(4))
    losses = [
        one(**vars(its.collate([its.encode_drawing("a dog", codes_LK)], one.image_tokenizer)))
        for one, its in ((model, processor), (plain, plain_processor))
    ]
    assert torch.equal(losses[0].code_loss, losses[1].code_loss)
    drawn, expected = (generate_images(*pair, "a dog", 1)[0] for pair in ((model, processor), (plain, plain_processor)))
    assert drawn.tobytes() == expected.tobytes()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("order", ON_GRID)
def test_a_shortened_image_sees_nothing_after_it(make, order, length):
    """Whose steps of drawing may be longer than the image is."""
    model, processor = make("sum", order=order)
    processor.image_length = length
    chats = [_chat(_picture(), words=words) for words in ("what is this?", "who are they?")]
    hidden = []
    for chat in chats:
        batch = processor.collate([processor.encode(chat)], model.image_tokenizer)
        with torch.no_grad():
            embeds = model.embed(
                batch.input_ids, batch.codes, None, batch.is_target, batch.features, batch.image_lengths
            )
            last = int((batch.input_ids[0] == processor.image_id).nonzero().max())
            hidden.append(model.run_layers(embeds, batch.input_ids).last_hidden_state[0, : last + 1])
    torch.testing.assert_close(hidden[0], hidden[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", IMAGE_INPUTS)
def test_candidates_edits_and_chats_that_draw_go_on(make, name):
    model, processor = make(name)
    processor.image_length = 4
    start = [start_drawing(model, processor, "a dog")] * 3
    codes_NLK = sample_codes(model, processor, start, candidate_generators(1, 3), **DRAWING)
    seen = [_picture_of(model, codes_LK) for codes_LK in codes_NLK]
    fits = [fit(model, processor, "a dog", read_images(model, [one])).item() for one in seen]
    assert len(set(fits)) == 3
    [kept] = generate_images(model, processor, "a dog", 1, candidates=3, **DRAWING)
    assert kept.tobytes() == seen[fits.index(max(fits))].tobytes()
    mask = Image.new("RGBA", (64, 64))
    [edited] = edit_images(model, processor, _picture(), "make it blue", mask, candidates=2, image_cfg_scale=1.5)
    assert edited.size == (64, 64)
    with torch.no_grad():  # which draws at once, again and again
        model.lm_head.register_forward_hook(lambda _, __, x: x.index_fill(-1, torch.tensor([processor.boi_id]), 100.0))
    pieces = list(
        generate_text(model, processor, _chat(_picture()), 2, drawing=DrawingOptions(candidates=2, cfg_scale=1.0))
    )
    assert [piece.size for piece in pieces] == [(64, 64)] * 2


@pytest.mark.parametrize("name", READ_FEATURES)
def test_codes_to_read_are_refused_where_features_are_read(make, name):
    model, processor = make(name)
    codes_LK = model.image_tokenizer.encode([_picture()])[0]
    with pytest.raises(ValueError, match=f"image to read is codes, but image_input '{name}'") as error:
        generate_texts(model, processor, _chat(codes_LK), 2)
    assert "\n" not in str(error.value)
    batch = processor.collate([processor.encode(_chat(codes_LK))])
    with pytest.raises(ValueError, match="1 images to read and features of 0: .* give pictures, not codes"):
        model(**vars(batch))
    with pytest.raises(ValueError, match="unknown image_input 'pixels'; known: codes, features, sum"):
        make("pixels")


def test_lengths_that_were_not_learned_are_refused_and_divprune_takes_any(make, make_tiny_model):
    model, processor = make()
    processor.image_length = 9
    learned = "images of 9 positions, but this model learned to read lengths 16, 4, 1: set processor.image_length"
    with pytest.raises(ValueError, match=learned):
        generate_texts(model, processor, _chat(_picture()), 2)
    plain = make_tiny_model(image_size=64)[0]
    with pytest.raises(ValueError, match="learned to read all 16 positions only"):
        generate_texts(plain, processor, _chat(_picture()), 2)
    for length in (9, 7, 2, 1):
        processor.image_length, plain.config.image_shortening = length, "divprune"
        assert len(generate_texts(plain, processor, [_chat(_picture())] * 2, 2)) == 2
    plain.config.image_shortening = "merge"
    with pytest.raises(ValueError, match="unknown image_shortening 'merge'; known: pool, divprune"):
        generate_texts(plain, processor, _chat(_picture()), 2)
    for length in (0, 17):
        with pytest.raises(ValueError, match=f"image_length {length}: images have 1 to 16 positions"):
            processor.image_length = length


@pytest.mark.parametrize("lengths", [[4, 1], [16, 5], [16, 0], [16, 25]])
def test_lengths_that_no_pooling_makes_are_refused(make_tiny_model, lengths):
    with pytest.raises(ValueError, match=r"image_lengths .*: give squares from 1 to 16, and 16 itself"):
        make_tiny_model(image_size=64, image_lengths=lengths)


@pytest.mark.parametrize("name", SHORTENINGS)
def test_a_shortening_gives_each_image_what_it_gives_it_alone(name):
    embeds_NLD = torch.randn(3, L, 8, generator=torch.Generator().manual_seed(0))
    for n in (1, 4, 9):
        short = SHORTENINGS[name](embeds_NLD, n)
        assert short.shape == (3, n, 8)
        torch.testing.assert_close(short, torch.cat([SHORTENINGS[name](one[None], n) for one in embeds_NLD]))


def test_pooling_takes_means_of_the_grid():
    embeds_NLD = torch.randn(2, L, 8, generator=torch.Generator().manual_seed(0))
    grid = embeds_NLD.view(2, 4, 4, 8)
    expected = torch.stack([grid[:, y : y + 2, x : x + 2].mean((1, 2)) for y in (0, 2) for x in (0, 2)], 1)
    torch.testing.assert_close(pool(embeds_NLD, 4), expected)


@pytest.mark.parametrize("seed", range(5))
def test_divprune_is_the_plain_loop_from_the_best_pair_on(seed):
    points = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))

    def distance(one: int, other: int) -> float:
        return 1 - F.cosine_similarity(points[one], points[other], dim=0).item()

    def kept(n: int) -> set[int]:
        [short] = divprune(points[None], n)
        found = [int((points == row).all(1).nonzero()) for row in short]
        assert found == sorted(found)
        return set(found)

    pair = set(max(combinations(range(8), 2), key=lambda one: distance(*one)))  # of all pairs
    assert kept(2) == pair and kept(1) <= pair
    chosen = set(pair)
    for n in range(3, 9):
        chosen.add(max(set(range(8)) - chosen, key=lambda one: min(distance(one, other) for other in chosen)))
        assert kept(n) == chosen


def test_a_sum_that_is_new_reads_what_codes_alone_say(make_tiny_model):
    model, processor = make_tiny_model(image_size=64)
    before = _logits(model, processor, [_chat(_picture())])
    model.read_as("sum")
    assert torch.equal(_logits(model, processor, [_chat(_picture())]), before)
