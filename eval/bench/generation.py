"""Prompts to the codes of images, beside the loop of the reference; images to text, beside transformers' `generate`."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from mllm import Mllm
from mllm.codes import DepthHead, Pick
from mllm.decode.batch import Batch
from mllm.decode.options import Sampling
from mllm.decode.program import Steps, Track, Write
from mllm.decode.run import run_tracks, sample_codes
from mllm.decode.stream import check_length

from . import Options
from .figures import Figure, check_codes, compare, gap
from .models import get_model, question
from .reference import GUIDANCE, SAMPLING, guided, reference_body, reference_draw, reference_pick
from .roofline import roofline, step_costs


@torch.no_grad()
def bench_generate(options: Options, batch: int) -> list[Figure]:
    model, processor = get_model(options.model, options.shape)
    if not isinstance(model.code_head, DepthHead):
        raise ValueError(f"{options.model} has a code head {model.config.code_head!r}: generate compares depth heads")
    if model.order.parallel:
        raise ValueError(f"{options.model} draws in the order {model.config.order!r}: generate compares raster")
    whole = model.config.image_tokenizer_config.num_positions
    processor.num_positions = positions = options.positions or whole
    if positions > whole:
        raise ValueError(f"--positions {positions}: an image of this model has {whole}")
    body = reference_body(model.code_head)
    samples = [processor.encode_drawing(f"a photo of {row + 1} dogs") for row in range(batch)]
    rows = processor.collate(samples + [processor.encode_drawing(None)] * batch, left=True)
    prompts = rows.input_ids.to(model.device), rows.attention_mask.to(model.device)
    generators = [torch.Generator().manual_seed(row) for row in range(batch)]

    def ours(**sampling: Any) -> torch.Tensor:
        return sample_codes(model, processor, samples, generators, cfg_scale=GUIDANCE, **sampling)

    def reference(pick: Pick) -> torch.Tensor:
        return reference_draw(model, body, *prompts, positions, pick)[:batch]

    gaps: list[torch.Tensor] = []
    codes_NLK = reference(greedy(gaps))
    check_codes(ours(temperature=0.0), codes_NLK, torch.stack(gaps, 1).view_as(codes_NLK), in_turn=True)
    figures = compare(
        f"generate, batch {batch}",
        lambda: ours(**SAMPLING),
        lambda: reference(reference_pick(**SAMPLING)),
        {"images/s": batch * positions / whole, "codes/s": codes_NLK.numel()},
        options.repeats,
    )
    columns = int(rows.attention_mask.sum()) + 2 * batch * positions // 2
    return figures + roofline(figures[0], batch / whole, *step_costs(model, 2 * batch, columns, model.code_head))


def greedy(gaps: list[torch.Tensor]) -> Pick:
    """The likeliest entry under guidance; collects how far the second one is."""

    def pick(logits_BV: torch.Tensor, k: int) -> torch.Tensor:
        gaps.append(gap(guided(logits_BV)))
        return guided(logits_BV).argmax(-1).repeat(2)

    return pick


@torch.no_grad()
def bench_answer(options: Options, batch: int) -> list[Figure]:
    model, processor = get_model(options.model, options.shape)
    samples = [processor.encode(question(model, row)) for row in range(batch)]
    for one in samples:
        check_length(model, processor, one, options.tokens)
    causal = causal_model(model)
    rows = processor.collate(samples, left=True)
    x_BTD, mask_BT = model.embed(rows.input_ids.to(model.device), rows.codes.to(model.device)), rows.attention_mask
    generation = GenerationConfig(max_new_tokens=options.tokens, do_sample=False, pad_token_id=processor.pad_id)

    def ours() -> torch.Tensor:
        tracks = [Track(one, lambda _: endless(options.tokens), torch.Generator(), options.tokens) for one in samples]
        return torch.tensor(run_tracks(Batch(model, processor), tracks))

    def baseline(**more: Any) -> Any:
        return causal.generate(inputs_embeds=x_BTD, attention_mask=mask_BT, generation_config=generation, **more)

    told = baseline(output_logits=True, return_dict_in_generate=True)
    gaps_BT1 = gap(torch.stack(told.logits, 1))[..., None]
    check_codes(ours()[..., None], told.sequences[..., None], gaps_BT1, in_turn=True)
    figures = compare(f"answer, batch {batch}", ours, baseline, {"tokens/s": batch * options.tokens}, options.repeats)
    columns = sum(len(one.ids) for one in samples) + batch * options.tokens // 2
    return figures + roofline(figures[0], batch, *step_costs(model, batch, columns, model.lm_head))


def endless(tokens: int) -> Steps:
    """So many greedy ids, whatever they are."""
    ids: list[int] = []
    while len(ids) < tokens:
        ids.append((yield Write(Sampling())))
    return ids


def causal_model(model: Mllm) -> PreTrainedModel:
    """Transformers' class for text alone, around the same backbone; it never ends an answer by itself."""
    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(model.config.text_config)
    setattr(causal, causal.base_model_prefix, model.backbone)
    causal.lm_head, causal.generation_config = model.lm_head, GenerationConfig()
    return causal.eval()
