"""Packed rows: a sample in a row with others loses what it loses alone."""

import pytest
import torch

from mllm import Mllm, Processor
from mllm.text.processor import Batch, pack_rows
from mllm.text.templates import Sample


def _samples(processor: Processor) -> list[Sample]:
    """Drawings, a question about two images, and chats: long and short ones."""

    def codes(seed: int) -> torch.Tensor:
        return torch.randint(0, 16, (4, 2), generator=torch.Generator().manual_seed(seed))

    def chat(question: str, answer: str, *images: torch.Tensor) -> Sample:
        parts = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": question}]
        talk = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
        return processor.encode(talk, open_answer=False)

    return [
        processor.encode_drawing("a red dog", codes(0)),
        chat("which of these is a red dog?", "the second one, on the right", codes(1), codes(2)),
        chat("hello", "a"),
        processor.encode_drawing(None, codes(3)),
        chat("what is this?", "a dog", codes(4)),
        processor.encode_drawing("two blue cats and a red dog on a green background", codes(5)),
    ]


def _run(model: Mllm, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sums and counts of losses, and gradients of the sums."""
    model.zero_grad()
    output = model(**vars(batch))
    (output.text_loss + output.code_loss).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return torch.stack([output.text_loss, output.text_count, output.code_loss, output.code_count]).detach(), gradients


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("parts", [("tables", "depth"), ("codebook", "parallel")], ids="-".join)
def test_packed_and_padded_lose_the_same(make_tiny_model, parts, attention):
    model, processor = make_tiny_model(*parts)
    model.train().set_attn_implementation(attention)
    samples = _samples(processor)
    packed = processor.collate(samples, pack=80)
    assert 1 < len(packed.input_ids) < len(samples)  # several rows, one of them with several samples
    losses, gradients = _run(model, packed)
    padded_losses, padded_gradients = _run(model, processor.collate(samples))
    torch.testing.assert_close(losses, padded_losses, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == padded_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, padded_gradients[name], rtol=1e-4, atol=1e-5, msg=name)


def test_without_positions_samples_would_see_each_other(tiny_model):
    """So the test above can fail."""
    model, processor = tiny_model
    batch = processor.collate(_samples(processor), pack=80)
    losses = [model(**{**vars(batch), "position_ids": given}).text_loss for given in (batch.position_ids, None)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_rows_hold_all_samples_are_few_and_about_equally_full(tiny_model):
    samples = _samples(tiny_model[1]) * 5
    total, longest = sum(len(sample.ids) for sample in samples), max(len(sample.ids) for sample in samples)
    for length in (longest, 80, 200, total):
        rows = pack_rows(samples, length)
        full = [sum(len(sample.ids) for sample in row) for row in rows]
        assert sorted(map(id, sum(rows, []))) == sorted(map(id, samples))
        assert max(full) <= length and max(full) - min(full) <= longest
        assert len(rows) <= 1.3 * total / length + 1


def test_a_sample_longer_than_a_row_is_refused(tiny_model):
    longest = max(len(sample.ids) for sample in _samples(tiny_model[1]))
    with pytest.raises(ValueError, match=f"a sample of {longest} tokens does not fit into a row of {longest - 1}"):
        tiny_model[1].collate(_samples(tiny_model[1]), pack=longest - 1)
