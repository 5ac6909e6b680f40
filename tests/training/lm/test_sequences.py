"""Previews show what carries loss, and nothing else, as such."""

import torch

from training.lm.sequences import preview_line, preview_page, stretches


def _samples(processor) -> list:
    codes_LK = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]])
    parts = [{"type": "image", "image": codes_LK}, {"type": "text", "text": "a dog?"}]
    talk = [{"role": "user", "content": parts}, {"role": "assistant", "content": "yes"}]
    return [processor.encode(talk, open_answer=False), processor.encode_drawing("a dog", codes_LK)]


def test_a_line_marks_answers_and_drawn_images(tiny_model):
    _, processor = tiny_model
    asked, drawn = _samples(processor)
    assert preview_line(processor, asked) == "<s><user><boi> (4 codes) <eoi> a dog?<assistant> «yes</s>»"
    assert preview_line(processor, drawn) == "<s><user> a dog<assistant> «<boi>» «(4 codes)» «<eoi></s>»"


def test_stretches_hold_every_id_once(tiny_model):
    _, processor = tiny_model
    for sample in _samples(processor):
        cut = stretches(processor, sample)
        assert sum(stretch.image is not None for stretch in cut) == len(sample.images)
        words = "".join(stretch.text for stretch in cut).replace(" ", "")
        ids = [id for id in sample.ids if id != processor.image_id]
        assert words == processor.tokenizer.decode(ids).replace(" ", "")


def test_a_page_escapes_and_frames(tiny_model):
    model, processor = tiny_model
    words = "<b>ü</b>"
    talk = [{"role": "user", "content": words}, {"role": "assistant", "content": words}]
    samples = [*_samples(processor), processor.encode(talk, open_answer=False)]
    named = [(f"shard, {place}", sample) for place, sample in enumerate(samples)]
    page = preview_page(processor, model.image_tokenizer, named, "Title")
    assert page.isascii() and "<b>" not in page
    assert page.count("<img ") == 2 and page.count("<img class=loss ") == 1
    assert "<mark>yes&lt;/s&gt;</mark>" in page and "shard, 1" in page
