"""Candidates: the first is the image without choosing, the kept one fits the prompt best, as the model reads it."""

import pytest
import torch

from mllm import generate_images, generate_text
from mllm.decode.options import DrawingOptions
from mllm.decode.program import candidate_generators, start_drawing
from mllm.decode.rerank import ASKED_FOR_PROMPT, best, fit
from mllm.decode.run import plan_drawings, sample_codes

PROMPT = "a photo of a red dog"


def _candidates(model, processor, prompt=PROMPT, seed=3, count=4):
    generators = candidate_generators(seed, count)
    starts = [start_drawing(model, processor, prompt)] * count
    samples = plan_drawings(model, processor, starts, generators, temperature=0.5)
    return sample_codes(model, processor, samples, generators)


def test_fit_is_the_probability_of_the_prompt_as_an_answer(tiny_model):
    model, processor = tiny_model
    codes_NLK = _candidates(model, processor, count=2)
    content = [{"type": "image", "image": codes_NLK[1]}, {"type": "text", "text": ASKED_FOR_PROMPT}]
    asked = processor.encode([{"role": "user", "content": content}]).ids
    answered = [*asked, *processor.tokenizer(PROMPT, add_special_tokens=False).input_ids, processor.eos_id]
    with torch.no_grad():
        logits_TS = model(torch.tensor([answered]), codes_NLK[1:]).logits[0].log_softmax(-1)
    expected = sum(logits_TS[place - 1, answered[place]] for place in range(len(asked), len(answered)))
    torch.testing.assert_close(fit(model, processor, PROMPT, codes_NLK)[1], expected)


def _seen_fit(model, processor, codes_1LK):
    [image] = model.decode_image_tokens(codes_1LK)
    return fit(model, processor, PROMPT, model.image_tokenizer.encode([image])).item()


def test_of_the_candidates_the_one_that_fits_best_is_kept(tiny_model):
    model, processor = tiny_model
    codes_NLK = _candidates(model, processor)
    fits = [_seen_fit(model, processor, codes_LK[None]) for codes_LK in codes_NLK]
    assert len(set(fits)) == 4
    kept = codes_NLK[fits.index(max(fits))]
    assert torch.equal(best(model, processor, [PROMPT], codes_NLK)[0], kept)
    [image] = generate_images(model, processor, [PROMPT], seeds=3, candidates=4)
    assert image.tobytes() == model.decode_image_tokens(kept[None])[0].tobytes()


def test_fewer_candidates_are_the_first_of_more_and_one_is_the_seed_alone(tiny_model):
    model, processor = tiny_model
    four = _candidates(model, processor)
    assert torch.equal(_candidates(model, processor, count=2), four[:2])
    [image] = generate_images(model, processor, [PROMPT], seeds=3, candidates=1)
    assert image.tobytes() == generate_images(model, processor, [PROMPT], seeds=3)[0].tobytes()
    assert image.tobytes() == model.decode_image_tokens(four[:1])[0].tobytes()
    assert len({tuple(codes_LK.flatten().tolist()) for codes_LK in four}) == 4


def test_a_chosen_image_does_not_depend_on_its_batch(tiny_model):
    model, processor = tiny_model
    prompts = [PROMPT, "a kite", "two cats and a bus"]
    together = generate_images(model, processor, prompts, seeds=[5, 6, 7], candidates=3)
    for row, prompt in enumerate(prompts):
        [alone] = generate_images(model, processor, [prompt], seeds=5 + row, candidates=3)
        assert alone.tobytes() == together[row].tobytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 0}, "candidates 0 is below 1, the drawing that is kept"),
        ({"candidates": 4, "temperature": 0}, "candidates 4 at temperature 0 would all be the same"),
    ],
)
def test_impossible_candidates_are_refused(tiny_model, options, message):
    with pytest.raises(ValueError, match=message):
        generate_images(*tiny_model, [PROMPT], **options)


def test_a_prompt_that_leaves_no_room_for_itself_as_an_answer_is_refused(tiny_model):
    model, processor = tiny_model
    room = model.config.text_config.max_position_embeddings - processor.num_positions
    prompt = "a " * (room - len(processor.encode_drawing("a").ids))
    codes_NLK = torch.zeros(2, processor.num_positions, model.config.image_tokenizer["num_codebooks"]).long()
    start_drawing(model, processor, prompt)
    for choose in (
        lambda: fit(model, processor, prompt, codes_NLK),
        lambda: start_drawing(model, processor, prompt, candidates=2),  # before anything is drawn
    ):
        with pytest.raises(ValueError, match="but the model reads 256: shorten the text"):
            choose()


def test_a_chat_chooses_among_its_drawings_by_the_last_message(make_tiny_model):
    model, processor = make_tiny_model()

    def draw_at_once(_, __, logits_BS):
        hook.remove()
        return logits_BS.index_fill(-1, torch.tensor([processor.boi_id]), 100.0)

    hook = model.lm_head.register_forward_hook(draw_at_once)
    messages = [{"role": "user", "content": PROMPT}]
    pieces = generate_text(
        model, processor, messages, max_new_tokens=1, drawing=DrawingOptions(candidates=3, temperature=1.0)
    )
    images = [piece for piece in pieces if not isinstance(piece, str)]
    sample = processor.encode(messages)
    sample.add([processor.boi_id])
    codes_NLK = sample_codes(model, processor, [sample] * 3, candidate_generators(0, 3), temperature=1.0)
    kept = max(codes_NLK, key=lambda codes_LK: _seen_fit(model, processor, codes_LK[None]))
    assert [image.tobytes() for image in images] == [model.decode_image_tokens(kept[None])[0].tobytes()]
