"""One position by every kernel: C++ (`mllm/fast/cpu.py`) and inductor (`torch.compile`), each against eager.

Inductor compiles one layer, which all layers share. It gets memory of fixed shapes, without which it would compile at
every position.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from mllm import Mllm, MllmConfig
from mllm.config import CACHE
from mllm.decode.options import Sampling
from mllm.decode.sampling import Picker
from mllm.decode.stream import ONE, KeyValues
from mllm.fast import cpu, eager
from mllm.fast.quantize import KINDS
from tokenizer import SIZES

from . import KERNEL_SHAPES, Options
from .figures import Figure, spread
from .models import known
from .steps import in_form

PREFILLED, COLUMNS = 64, 128  # positions before the timed ones, and memory for all
SECONDS = 0.5  # at least so long are the kernels timed, in turns
DIFFERENCE = {"float32": 1e-4, "exact": 1e-4}  # of outputs, relative to their norm
COARSE = 0.05  # the same for the others, where roundings differ
GUIDANCE = 2.0
# "exact": float32 weights that bfloat16 represents exactly, as in most checkpoints; C++ stores them in it. For the
# others they are float32.
FORMS = ("float32", "exact", "bfloat16", *KINDS)


@torch.no_grad()
def bench_kernels(options: Options, batch: int) -> Iterator[Figure]:
    """Figures one by one, since compiling takes minutes. Raises ValueError where kernels give different results."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns of nvcc where there is no GPU
    names = [options.shape] if options.shape else [name for name in KERNEL_SHAPES if name != "tiny"]
    for name in names:
        shape = known(KERNEL_SHAPES, name)
        if "layers" in shape:
            for form in FORMS:
                backbone = new_model(shape, form).backbone
                yield from compare_steps(f"{name}, backbone, {form}, batch {batch}", backbone, batch, form, options)
        if "head" in shape:
            for form in FORMS[:3]:  # heads of quantized models are in bfloat16
                head = new_model(shape, form).code_head
                yield from compare_heads(f"{name}, code head, {form}, batch {batch}", head, batch, form, options)


def new_model(shape: dict[str, Any], form: str) -> Mllm:
    """Random weights of a shape. Where it has no layers or no code head of its own, these are small."""
    dim = shape["dim"]
    text = {
        "vocab_size": 64,
        "hidden_size": dim,
        "intermediate_size": shape.get("hidden", 64),
        "num_hidden_layers": shape.get("layers", 1),
        "num_attention_heads": shape.get("heads", 1),
        "num_key_value_heads": shape.get("kv_heads", 1),
        "head_dim": shape.get("head_dim", 64),
    }
    head = shape.get("head", {"codebooks": 2, "entries": 16, "layers": 1, "heads": 1})
    sizes = {**SIZES["tiny"].to_dict(), "num_codebooks": head["codebooks"], "codebook_size": head["entries"]}
    sizes |= {"code_width": 8 * head["codebooks"], "width": 16 * head["codebooks"], "embed_dim": 16}
    args = {key: value for key, value in head.items() if key not in ("codebooks", "entries")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mllm(MllmConfig(text_config=text, image_tokenizer=sizes, code_head_args=args)).eval()
    if form != "float32":
        for part in (model.backbone, model.code_head):
            part.bfloat16().float()
    model = model if form in ("float32", "exact") else in_form(model, form)
    if form == "bfloat16":
        model.code_head.bfloat16()
    return model


def compare_steps(name: str, backbone: nn.Module, batch: int, form: str, options: Options) -> Iterator[Figure]:
    dtype, dim = backbone.norm.weight.dtype, backbone.config.hidden_size
    random = torch.Generator().manual_seed(0)
    prompt_BTD = 0.1 * torch.randn(batch, PREFILLED, dim, generator=random).to(dtype)
    x_BD = 0.1 * torch.randn(batch, dim, generator=random).to(dtype)
    prefilled = DynamicCache()
    backbone(inputs_embeds=prompt_BTD, use_cache=True, **{CACHE: prefilled})

    def kernel(step: Callable, fixed_shapes: bool = False) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            if run.cache is None or run.cache.lengths[0] == COLUMNS - 1:  # begin again: memory must not grow
                run.cache = KeyValues(prefilled, fixed_shapes)
                run.cache.add(prefilled, list(range(batch)), [PREFILLED] * batch, COLUMNS - PREFILLED)
            run.cache.open([ONE] * batch)
            h_BD = step(x_BD, run.cache)
            run.cache.close()
            return h_BD

        run.cache = None
        return run

    plain = partial(eager.step_llama, backbone)
    ways = {}
    if step := cpu.backbone(backbone):
        ways["C++"] = kernel(step)
    if form != "exact":
        torch.compiler.reset()
        compiled = partial(plain, run_layer=torch.compile(eager.llama_layer, dynamic=False))
        ways["inductor"] = kernel(compiled, fixed_shapes=True)
    yield from compare(name, ways, kernel(plain), DIFFERENCE.get(form, COARSE), options)


def compare_heads(name: str, head: nn.Module, batch: int, form: str, options: Options) -> Iterator[Figure]:
    """The sub-codes of one position, with guidance."""
    width = (head.enter.in_features if isinstance(head.enter, nn.Linear) else head.norm.weight.shape[0],)
    random = torch.Generator().manual_seed(0)
    h_BD = torch.randn(2 * batch, *width, generator=random).to(head.norm.weight.dtype)
    pick = Picker((GUIDANCE,), [torch.Generator()] * batch, head.num_codebooks, Sampling(temperature=0.5))
    ways = {}
    if draw := cpu.head(head):
        ways["C++"] = lambda: draw(h_BD, pick)
    if form != "exact":
        torch.compiler.reset()
        compiled = deepcopy(head)
        for layer in compiled.layers:
            layer.step = torch.compile(layer.step)
        ways["inductor"] = lambda: compiled.sample(h_BD, pick)
    yield from compare(name, ways, lambda: head.sample(h_BD, pick), None, options)


def compare(
    name: str, ways: dict[str, Callable], baseline: Callable, difference: float | None, options: Options
) -> Iterator[Figure]:
    """All ways in turns, with a limit to the difference of their outputs (None: codes, which are not compared here, as
    near ties may differ; the tests of mllm/fast compare them)."""
    kernels = {**ways, "eager": baseline}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's own
        outputs = {way: run().float() for way, run in kernels.items()}
    expected = outputs.pop("eager")
    for way, output in outputs.items():
        error = ((output - expected).norm() / expected.norm()).item()
        if difference is not None and not error <= difference:
            raise ValueError(f"{name}: not timed, as {way} and eager give different results: {error:.1e} of the norm")
    # Other processes do not lengthen the CPU time of one thread; that of several counts their waiting.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {way: [] for way in kernels}
    while len(times["eager"]) < options.repeats or sum(map(sum, times.values())) < SECONDS:
        for way, run in kernels.items():
            start = clock()
            run()
            times[way].append(clock() - start)
    theirs = times.pop("eager")
    for way, mine in times.items():
        ratio = median(theirs) / median(mine)
        yield Figure(
            f"{name}, {way}", 1 / median(mine), "positions/s", 1 / median(theirs), ratio, spread(mine), spread(theirs)
        )
