"""Reranking of candidates: a model reads its own drawings and scores how well each one fits the prompt.

Shapes: N images, L positions an image, K sub-codebooks.
"""

from collections.abc import Sequence

import torch

from ..device import send
from ..model import MllmForConditionalGeneration
from ..text.processor import Batch, MllmProcessor, as_codes
from ..text.templates import Sample
from .sampling import NotFinite
from .stream import check_length, read_images

ASKED_FOR_PROMPT = "write a prompt for this picture."  # recipes teach the answers, see training/data/scene_samples.py


@torch.no_grad()
def fit(
    model: MllmForConditionalGeneration, processor: MllmProcessor, prompt: str, images: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Scores [N]: the log-probability that the model answers with this prompt when it sees an image and is asked for a
    prompt (arXiv 2306.01879). `images` are codes_LK, or features_LQ for a model that reads these, as `reread` gives
    them. Raises as `check_readable`, and NotFinite for damaged weights."""
    check_readable(model, processor, prompt)
    chats = [processor.encode(_answered(prompt.strip(), image), open_answer=False) for image in images]
    x_NTD, ids_NT, batch = _embedded(model, processor, chats)
    h_NTD = model.run_layers(x_NTD, ids_NT).last_hidden_state
    fits_N = -model.text_losses(h_NTD, batch.labels).view(len(chats), -1).sum(1)
    if not bool(fits_N.isfinite().all()):
        raise NotFinite("likelihoods")
    return fits_N


def _embedded(
    model: MllmForConditionalGeneration, processor: MllmProcessor, samples: Sequence[Sample]
) -> tuple[torch.Tensor, torch.Tensor, Batch]:
    batch = processor.collate(samples, model.image_tokenizer)
    batch.codes = send(batch.codes, model.device)
    ids_NT, features = send(batch.input_ids, model.device), batch.features
    features = None if features is None else send(features, model.device)
    return model.embed(ids_NT, batch.codes, None, batch.is_target, features, batch.image_lengths), ids_NT, batch


def check_readable(model: MllmForConditionalGeneration, processor: MllmProcessor, prompt: str) -> None:
    """Raises ValueError for a prompt that is too long to be the answer to a question about an image."""
    check_length(model, processor, processor.encode(_answered(prompt.strip(), None), open_answer=False), room=0)


def _answered(prompt: str, image: torch.Tensor | None) -> list[dict]:
    asked = [{"type": "image", "image": image}, {"type": "text", "text": ASKED_FOR_PROMPT}]
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": prompt}]


def reread(model: MllmForConditionalGeneration, codes_NLK: torch.Tensor) -> torch.Tensor:
    """Decode codes to pixels and encode these again, codes_NLK -> codes_NLK, or features_NLQ if the model reads these.
    A model finds its own codes likely even if their pixels are a blob; the codes of the pixels show what there is to
    see."""
    pixels_N3HW = model.image_tokenizer.decode_pixels(codes_NLK.to(model.device)).clamp(-1, 1)
    return torch.stack(read_images(model, list(pixels_N3HW)))


@torch.no_grad()
def edit_fit(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    prompt: str,
    sources: Sequence[torch.Tensor],
    codes_NLK: torch.Tensor,
) -> torch.Tensor:
    """Scores [N] of edits of the `sources`, which are as `read_images` gives them: by how much the prompt makes an edit
    more likely than the sources alone do. By Bayes' rule, this is the log-probability of the prompt, given sources and
    edit, up to a constant. Raises NotFinite for damaged weights."""
    asked, unasked = (
        _likelihoods(model, processor, processor.encode_drawing(words, sources=sources), codes_NLK)
        for words in (prompt.strip(), None)
    )
    fits_N = asked - unasked
    if not bool(fits_N.isfinite().all()):
        raise NotFinite("likelihoods")
    return fits_N


def _likelihoods(
    model: MllmForConditionalGeneration, processor: MllmProcessor, start: Sample, codes_NLK: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities [N] of images that follow a sequence, which ends with the begin-of-image id."""
    L = codes_NLK.shape[1]
    rows = [
        Sample([*start.ids], [*start.labels], [], [*start.images, codes_LK], [*start.is_target, True])
        for codes_LK in codes_NLK
    ]
    for row in rows:
        row.add([processor.image_id] * L)
    x_NTD, ids_NT, batch = _embedded(model, processor, rows)
    codes_ALK = batch.codes  # of all images of all rows; the last of each is the one that is scored
    of_row = len(start.images) + 1
    scored = torch.arange(of_row - 1, len(codes_ALK), of_row, device=model.device)
    h_NTD = model.run_layers(x_NTD, ids_NT, scored).last_hidden_state
    h_PD, codes_PK = (x.flatten(0, 1) for x in model.predictors(h_NTD, ids_NT, codes_ALK, scored))
    chosen_PK1 = model.code_head(h_PD, codes_PK).float().log_softmax(-1).gather(-1, codes_PK[..., None])
    return chosen_PK1.view(len(codes_NLK), -1).sum(1)


@torch.no_grad()
def best_edit(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    prompt: str,
    sources: Sequence[torch.Tensor],
    codes_NLK: torch.Tensor,
) -> torch.Tensor:
    """The best of several edits for one prompt, [1, L, K]. Raises as `edit_fit`."""
    if model.image_input.reads_features:  # an earlier drawing of the same answer is codes
        sources = [one if one.is_floating_point() else reread(model, one[None])[0] for one in sources]
    seen_NLK = as_codes(list(reread(model, codes_NLK)), model.image_tokenizer)
    place = edit_fit(model, processor, prompt, sources, seen_NLK).argmax()
    return codes_NLK[place : place + 1]


@torch.no_grad()
def best(
    model: MllmForConditionalGeneration, processor: MllmProcessor, prompts: Sequence[str], codes_NLK: torch.Tensor
) -> torch.Tensor:
    """The best drawing of each prompt, [prompts, L, K]. `codes_NLK` has equally many drawings of each prompt, those of
    the first prompt first. Raises as `fit`."""
    chosen = []
    for prompt, codes_CLK in zip(prompts, codes_NLK.chunk(len(prompts)), strict=True):
        # Prompt by prompt, as rounding in a batch of another size could decide a near tie differently.
        chosen.append(codes_CLK[fit(model, processor, prompt, reread(model, codes_CLK)).argmax()])
    return torch.stack(chosen)
