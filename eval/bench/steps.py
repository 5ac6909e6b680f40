"""One position of the backbone with weights of each form, and a prompt at once."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from statistics import median
from typing import Any

import torch
from transformers import DynamicCache

from mllm import Mllm, Processor
from mllm.config import CACHE
from mllm.decode.stream import Stream
from mllm.fast.quantize import KINDS, quantize

from . import Options
from .figures import Figure, compare, seconds, spread
from .models import get_model, question, random_inputs
from .roofline import roofline, step_costs, throughput

FORMS = ("float32", "bfloat16", *KINDS)


@torch.no_grad()
def bench_step(options: Options, batch: int) -> list[Figure]:
    whole, processor = get_model(options.model, options.shape)
    samples, x_BD = [processor.encode(question(whole, row)) for row in range(batch)], random_inputs(whole, batch)
    columns = sum(len(one.ids) for one in samples) + batch * options.tokens // 2
    figures: list[Figure] = []
    plain: list[tuple[float, Callable]] = []  # rates and steps of what is not quantized
    for form in FORMS:
        model = in_form(whole, form)
        step = our_step(model, processor, samples, x_BD)
        other = max(plain, key=lambda pair: pair[0])[1] if form in KINDS else their_step(model, x_BD)
        ours, baseline = repeated(step, options.tokens), repeated(other, options.tokens)
        ours(), baseline()  # to warm up
        amounts = {"tokens/s": batch * options.tokens}
        figures += compare(f"step, {form}, batch {batch}", ours, baseline, amounts, options.repeats)
        if form not in KINDS:
            plain.append((figures[-1].value, step))
        figures += roofline(figures[-1], batch, *step_costs(model, batch, columns))[: 1 if form in KINDS else 2]
    return figures


def in_form(model: Mllm, form: str) -> Mllm:
    model = deepcopy(model)
    if form in KINDS:
        return quantize(model, form)
    for weight in [*model.backbone.parameters(), *model.code_embed.parameters()]:
        weight.data = weight.data.to(getattr(torch, form))  # buffers stay, as when a model is loaded so
    return model


def repeated(step: Callable, times: int) -> Callable:
    return lambda: [step() for _ in range(times)]


def our_step(model: Mllm, processor: Processor, samples: Sequence[Any], x_BD: torch.Tensor) -> Callable:
    stream = Stream(model, samples, processor, room=1024)
    return lambda: stream.feed(x_BD.to(stream.h_ED.dtype))


def their_step(model: Mllm, x_BD: torch.Tensor) -> Callable:
    """Transformers' own, with its cache, after about as many positions."""
    cache, x_B1D = DynamicCache(config=model.config.text_config), x_BD[:, None].to(model.backbone.dtype)
    length = model.config.image_tokenizer_config.num_positions
    model.backbone(inputs_embeds=x_B1D.repeat(1, length, 1), use_cache=True, **{CACHE: cache})
    return lambda: model.backbone(inputs_embeds=x_B1D, use_cache=True, **{CACHE: cache})


@torch.no_grad()
def bench_prefill(options: Options, batch: int) -> list[Figure]:
    model, _ = get_model(options.model, options.shape)
    x_BTD = random_inputs(model, batch, options.tokens)
    model.backbone(inputs_embeds=x_BTD, use_cache=False)  # to warm up
    times = [seconds(lambda: model.backbone(inputs_embeds=x_BTD, use_cache=False)) for _ in range(options.repeats)]
    _, operations = step_costs(model, 1, options.tokens // 2)
    rate, best = batch * options.tokens / median(times), 1e9 * throughput() / operations
    return [Figure(f"prefill, batch {batch}", rate, "tokens/s", best, rate / best, spread(times), 0.0)]
