"""Time a model against plain baselines, at the same weights and in the same run.

python -m scripts.bench encode --model scenes --batch 1 8
python -m scripts.bench decode --shape unitok-base --batch 4
python -m scripts.bench generate --shape w320 --batch 1 8 --positions 32 --json
python -m scripts.bench answer --model scenes --tokens 64
python -m scripts.bench step --shape w576 --tokens 16
python -m scripts.bench prefill --shape 7b-layers --tokens 256
python -m scripts.bench load --shape w576 --form int8
python -m scripts.bench train --shape scenes --batch 32
python -m scripts.bench update --shape scenes --batch 8
python -m scripts.bench threads --shape scenes --batch 8 --repeats 3

encode: pixels to codes. decode: codes to PIL images. generate: prompts to the codes of images, with guidance.
These three run against the loops of the reference implementation; answer, a question about an image to text,
against transformers' own `generate` on the same backbone; step, one position of the backbone, with weights as
they are and in bfloat16 against transformers' own step, quantized against the fastest of these; prefill, a prompt
of --tokens, against the matrix throughput of this machine; load, files to weights of a --form, against only reading
the files, its memory against the weights alone, libraries first without and then with what they take once in a process;
train, an update of the image tokenizer in bfloat16, against a loop in float32 over one codebook after the other;
update, one of a new language model as large as that of scenes, each thing that makes it fast or small against doing
without: packed rows, extracted codes, logits at labels only, compiled bfloat16, two processes, ZeRO-3;
threads, an update, a drawing and encoding, with the threads that a command chooses by itself, against each other number
of threads, way of waiting and allocator that is installed: a ratio above 1 says that its own choice is better.
--shape takes random weights instead of a model's. For encode, decode and train it names an image tokenizer's sizes,
for the others a width of the language model (w320: 320), with the reference's code embedding and code head. Such
weights are numbers of bfloat16, as those of released checkpoints. --plot draws the ratios.

Both ways must first give the same result, greedily where something is drawn; after that, they are timed in turns.
Figures come from the median time; spread is (slowest - fastest) / median. A ratio above 1: ours is better.
"of memory bandwidth" and "of matrix throughput" say how near generate and answer come to what this machine does in
the same run: bytes of weights and cache that a step touches, against reading as many of them, wherever they fit;
multiplications and additions, against those of large matrices. There, the ratio is the fraction reached.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, PreTrainedModel

from eval.pieces import device
from mllm import Mllm, MllmConfig, Processor
from mllm.codes import DepthHead, Pick
from mllm.decode.batch import Batch
from mllm.decode.program import Steps, Track, Write
from mllm.decode.run import run_tracks, sample_codes
from mllm.decode.sampling import Sampling
from mllm.decode.stream import Stream, check_length
from mllm.fast.cpu import exact
from mllm.fast.quantize import KINDS, quantize
from mllm.folders import find_model
from mllm.model import CACHE
from scripts._bench_lm import measure_logits, measure_ranks, measure_zero, pairs
from scripts._bench_load import measure_load
from scripts._bench_reference import (
    GUIDANCE,
    SAMPLING,
    guided,
    reference_body,
    reference_decode,
    reference_draw,
    reference_encode,
    reference_pick,
)
from scripts._bench_threads import measure as measure_threads
from scripts._bench_train import training_steps
from scripts._errors import Parser, cli
from scripts._files import finished
from scripts._load import load_image_tokenizer, load_model
from tokenizer import SIZES, ImageTokenizer, ImageTokenizerConfig
from tokenizer.transform import to_images
from training.run.metrics import peak_memory

# Width and layers; "7b-layers" is two of a 7B model's, to fit anywhere.
BACKBONES = {"tiny": (64, 2), "w320": (320, 6), "w576": (576, 30), "w2048": (2048, 16)}
BACKBONES |= {"7b-layers": (4096, 2), "7b": (4096, 32)}
FORMS = ("float32", "bfloat16", *KINDS)
TOLERANCE = 1e-4  # of pixels, relative to the largest; float32 leaves 1e-5
NEAR_TIE = 1e-4  # between the best entry and the second: rounding may swap them


@dataclass
class Figure:
    """`ratio` is how many times better `value` is than `baseline`; spreads are fractions of the median time."""

    name: str
    value: float
    unit: str
    baseline: float
    ratio: float
    spread: float
    baseline_spread: float


# ---- what is timed: a function for each command


@torch.no_grad()
def bench_encode(args: argparse.Namespace, batch: int) -> list[Figure]:
    image_tokenizer = get_image_tokenizer(args.model, args.shape)
    size, quantizer = image_tokenizer.config.image_size, image_tokenizer.quantizer
    pixels_N3HW = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels_N3HW = pixels_N3HW.to(image_tokenizer.device)

    codes_NLK = image_tokenizer.encode(pixels_N3HW)
    cosine_KPV = torch.bmm(quantizer.slices(image_tokenizer.features(pixels_N3HW)), quantizer.entries().mT)
    check_codes(codes_NLK, reference_encode(image_tokenizer, pixels_N3HW), gap(cosine_KPV).T.reshape(codes_NLK.shape))
    return compare(
        f"encode, batch {batch}",
        lambda: image_tokenizer.encode(pixels_N3HW),
        lambda: reference_encode(image_tokenizer, pixels_N3HW),
        {"images/s": batch, "codes/s": codes_NLK.numel()},
        args.repeats,
    )


@torch.no_grad()
def bench_decode(args: argparse.Namespace, batch: int) -> list[Figure]:
    image_tokenizer = get_image_tokenizer(args.model, args.shape)
    sizes, generator = image_tokenizer.config, torch.Generator().manual_seed(0)
    shape_NLK = (batch, sizes.num_positions, sizes.num_codebooks)
    codes_NLK = torch.randint(sizes.codebook_size, shape_NLK, generator=generator).to(image_tokenizer.device)

    check_pixels(image_tokenizer.decode_pixels(codes_NLK), torch.cat([*reference_decode(image_tokenizer, codes_NLK)]))
    return compare(
        f"decode, batch {batch}",
        lambda: image_tokenizer.decode(codes_NLK),
        lambda: [to_images(pixels_13HW) for pixels_13HW in reference_decode(image_tokenizer, codes_NLK)],
        {"images/s": batch, "codes/s": codes_NLK.numel()},
        args.repeats,
    )


@torch.no_grad()
def bench_generate(args: argparse.Namespace, batch: int) -> list[Figure]:
    model, processor = get_model(args.model, args.shape)
    if not isinstance(model.code_head, DepthHead):
        raise ValueError(f"{args.model} has a code head {model.config.code_head!r}: generate compares depth heads")
    whole = model.config.image_tokenizer_config.num_positions
    processor.num_positions = positions = args.positions or whole
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
        args.repeats,
    )
    columns = int(rows.attention_mask.sum()) + 2 * batch * positions // 2
    return figures + roofline(figures[0], batch / whole, *step_costs(model, 2 * batch, columns, model.code_head))


@torch.no_grad()
def bench_answer(args: argparse.Namespace, batch: int) -> list[Figure]:
    model, processor = get_model(args.model, args.shape)
    samples = [processor.encode(question(model, row)) for row in range(batch)]
    for one in samples:
        check_length(model, processor, one, args.tokens)
    causal = causal_model(model)
    rows = processor.collate(samples, left=True)
    x_BTD, mask_BT = model.embed(rows.input_ids.to(model.device), rows.codes.to(model.device)), rows.attention_mask
    options = GenerationConfig(max_new_tokens=args.tokens, do_sample=False, pad_token_id=processor.pad_id)

    def ours() -> torch.Tensor:
        tracks = [Track(one, lambda _: endless(args.tokens), torch.Generator(), args.tokens) for one in samples]
        return torch.tensor(run_tracks(Batch(model, processor), tracks))

    def baseline(**more: Any) -> Any:
        return causal.generate(inputs_embeds=x_BTD, attention_mask=mask_BT, generation_config=options, **more)

    told = baseline(output_logits=True, return_dict_in_generate=True)
    gaps_BT1 = gap(torch.stack(told.logits, 1))[..., None]
    check_codes(ours()[..., None], told.sequences[..., None], gaps_BT1, in_turn=True)
    figures = compare(f"answer, batch {batch}", ours, baseline, {"tokens/s": batch * args.tokens}, args.repeats)
    columns = sum(len(one.ids) for one in samples) + batch * args.tokens // 2
    return figures + roofline(figures[0], batch, *step_costs(model, batch, columns, model.lm_head))


def endless(tokens: int) -> Steps:
    """So many greedy ids, whatever they are."""
    ids: list[int] = []
    while len(ids) < tokens:
        ids.append((yield Write(Sampling())))
    return ids


def question(model: Mllm, row: int) -> list[dict[str, Any]]:
    """A chat about an image of random codes."""
    sizes, generator = model.config.image_tokenizer_config, torch.Generator().manual_seed(row)
    codes_LK = torch.randint(sizes.codebook_size, (sizes.num_positions, sizes.num_codebooks), generator=generator)
    content = [{"type": "image", "image": codes_LK}, {"type": "text", "text": f"are there {row + 1} dogs?"}]
    return [{"role": "user", "content": content}]


def causal_model(model: Mllm) -> PreTrainedModel:
    """Transformers' class for text alone, around the same backbone; it never ends an answer by itself."""
    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(model.config.text_config)
    setattr(causal, causal.base_model_prefix, model.backbone)
    causal.lm_head, causal.generation_config = model.lm_head, GenerationConfig()
    return causal.eval()


@torch.no_grad()
def bench_step(args: argparse.Namespace, batch: int) -> list[Figure]:
    whole, processor = get_model(args.model, args.shape)
    samples, x_BD = [processor.encode(question(whole, row)) for row in range(batch)], random_inputs(whole, batch)
    columns = sum(len(one.ids) for one in samples) + batch * args.tokens // 2
    figures: list[Figure] = []
    plain: list[tuple[float, Callable]] = []  # rates and steps of what is not quantized
    for form in FORMS:
        model = in_form(whole, form)
        step = our_step(model, processor, samples, x_BD)
        other = max(plain, key=lambda pair: pair[0])[1] if form in KINDS else their_step(model, x_BD)
        ours, baseline = repeated(step, args.tokens), repeated(other, args.tokens)
        ours(), baseline()  # to warm up
        amounts = {"tokens/s": batch * args.tokens}
        figures += compare(f"step, {form}, batch {batch}", ours, baseline, amounts, args.repeats)
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


def random_inputs(model: Mllm, *shape: int) -> torch.Tensor:
    """[*shape, D], on the model's device."""
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(*shape, model.config.text_config.hidden_size, generator=generator).to(model.device)


def our_step(model: Mllm, processor: Processor, samples: Sequence[Any], x_BD: torch.Tensor) -> Callable:
    stream = Stream(model, samples, processor, room=1024)
    return lambda: stream.feed(x_BD.to(stream.h_BD.dtype))


def their_step(model: Mllm, x_BD: torch.Tensor) -> Callable:
    """Transformers' own, with its cache, after about as many positions."""
    cache, x_B1D = DynamicCache(config=model.config.text_config), x_BD[:, None].to(model.backbone.dtype)
    length = model.config.image_tokenizer_config.num_positions
    model.backbone(inputs_embeds=x_B1D.repeat(1, length, 1), use_cache=True, **{CACHE: cache})
    return lambda: model.backbone(inputs_embeds=x_B1D, use_cache=True, **{CACHE: cache})


@torch.no_grad()
def bench_prefill(args: argparse.Namespace, batch: int) -> list[Figure]:
    model, _ = get_model(args.model, args.shape)
    x_BTD = random_inputs(model, batch, args.tokens)
    model.backbone(inputs_embeds=x_BTD, use_cache=False)  # to warm up
    times = [seconds(lambda: model.backbone(inputs_embeds=x_BTD, use_cache=False)) for _ in range(args.repeats)]
    _, operations = step_costs(model, 1, args.tokens // 2)
    rate, best = batch * args.tokens / median(times), 1e9 * throughput() / operations
    return [Figure(f"prefill, batch {batch}", rate, "tokens/s", best, rate / best, spread(times), 0.0)]


def bench_load(args: argparse.Namespace, batch: int) -> list[Figure]:
    form = args.form or "float32"
    with TemporaryDirectory() as scratch:
        first = stored(smallest(), Path(scratch) / "first")
        folder = find_model(args.model) if args.model else stored(new_model(args.shape), Path(scratch) / args.shape)
        runs = [measure_load(folder, first, form) for _ in range(args.repeats)]
    for run in runs:
        run["peak_once_gb"] = run["peak_gb"] + run["once_gb"]
    middle = {name: median(run[name] for run in runs) for name in runs[0]}
    spreads = {name: spread([run[name] for run in runs]) for name in runs[0]}
    return [
        Figure(name, middle[mine], unit, middle[least], middle[least] / middle[mine], spreads[mine], spreads[least])
        for name, mine, unit, least in [
            (f"load, {form}", "seconds", "s", "read_seconds"),
            (f"load, {form}, memory held", "held_gb", "GB", "weights_gb"),
            (f"load, {form}, peak memory", "peak_gb", "GB", "weights_gb"),
            (f"load, {form}, peak memory with the libraries'", "peak_once_gb", "GB", "weights_gb"),
        ]
    ]


def stored(parts: tuple[Mllm, Processor], folder: Path) -> str:
    """The folder, with a model as released ones are stored: all but the image tokenizer in bfloat16."""
    model, processor = parts
    for part in (model.config, processor):
        part.save_pretrained(folder)
    weights = model.state_dict()
    weights |= {name: x.bfloat16() for name, x in weights.items() if not name.startswith("image_tokenizer.")}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def bench_train(args: argparse.Namespace, batch: int) -> list[Figure]:
    if args.model:
        raise ValueError("train starts from random weights: give --shape, not --model")
    known(SIZES, args.shape)
    exact, plain = training_steps(args.shape, batch, "fp32")
    losses = [exact(), plain()]
    if abs(losses[0] - losses[1]) > TOLERANCE * losses[1]:
        raise ValueError(f"not timed, as ours and the plain loop have different losses: {losses[0]} and {losses[1]}")
    ours, plain = training_steps(args.shape, batch, "bf16")
    ours(), plain()  # to warm up
    return compare(f"train, batch {batch}", ours, plain, {"images/s": batch}, args.repeats)


def bench_update(args: argparse.Namespace, batch: int) -> list[Figure]:
    if args.shape != "scenes":
        raise ValueError("update is of a new model as large as that of scenes: give --shape scenes")
    figures: list[Figure] = []
    for make in pairs(batch):
        pair = make()
        figures += compare(pair.name, pair.ours, pair.plain, pair.amounts, args.repeats)
    logits, speed, memory = measure_logits(batch), measure_ranks(), measure_zero()
    for name, unit, ours, baseline, ratio in [
        ("logits at labels / everywhere", "GB", (o := logits["at_labels"]), (b := logits["everywhere"]), b / o),
        ("two processes / one", "tokens/s", (o := speed["two"]), (b := speed["one"]), o / b),
        ("ZeRO-3 / ZeRO-0, each of two processes", "GB", (o := memory["zero3"]), (b := memory["zero0"]), b / o),
    ]:
        figures.append(Figure(name, ours, unit, baseline, ratio, 0.0, 0.0))
    return figures


def bench_threads(args: argparse.Namespace, batch: int) -> list[Figure]:
    if args.shape != "scenes":
        raise ValueError("threads is of the model of scenes: give --shape scenes")
    figures: list[Figure] = []
    for work, rates in measure_threads(batch, args.repeats).items():
        name, unit = work.split(", ")
        (_, own), *others = rates.items()
        for setting, other in others:
            mine, theirs = median(own), median(other)
            figures.append(Figure(f"{name}: {setting}", mine, unit, theirs, mine / theirs, spread(own), spread(other)))
    return figures


BENCHES = {
    "encode": bench_encode,
    "decode": bench_decode,
    "generate": bench_generate,
    "answer": bench_answer,
    "step": bench_step,
    "prefill": bench_prefill,
    "load": bench_load,
    "train": bench_train,
    "update": bench_update,
    "threads": bench_threads,
}


# ---- the roofline


def step_costs(model: Mllm, rows: int, columns: int, *heads: nn.Module) -> tuple[float, float]:
    """-> bytes and floating point operations of one position: weights of backbone and heads, keys and values in
    `columns` of all rows together. The weights of a depth head count once for each sub-code that they are read for."""
    blocks = [parameter for name, parameter in model.backbone.named_parameters() if "embed" not in name]
    for head in heads:
        if isinstance(head, DepthHead):
            blocks += [*head.enter.parameters()] + [*head.layers.parameters()] * head.num_codebooks
            blocks += [p for k in range(head.num_codebooks) for p in head.outputs[k % len(head.outputs)].parameters()]
        else:
            blocks += head.parameters()
    text = model.config.text_config
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cached = 2 * text.num_hidden_layers * text.num_key_value_heads * width * columns
    grouped = text.num_attention_heads // text.num_key_value_heads
    quantized = [buffer for name, buffer in model.backbone.named_buffers() if "layers" in name]
    return (
        sum(map(stored_bytes, blocks + quantized)) + cached * model.backbone.norm.weight.itemsize,
        2 * rows * sum(block.numel() for block in blocks) + 2 * grouped * cached,
    )


def stored_bytes(weight: torch.Tensor) -> int:
    """As a step reads it: the compiled one keeps as bfloat16 what is."""
    compiled = weight.dtype == torch.float32 and weight.device.type == "cpu"
    return weight.nbytes // 2 if compiled and exact(weight) else weight.nbytes


def roofline(rate: Figure, per_step: float, bytes: float, operations: float) -> list[Figure]:
    """What a `rate` of which a step yields `per_step` reaches of the machine's own."""
    steps = rate.value / per_step
    return [
        Figure(
            f"{rate.name}, of {what}", amount * steps / 1e9, unit, best, amount * steps / 1e9 / best, rate.spread, 0.0
        )
        for what, amount, unit, best in [
            ("memory bandwidth", bytes, "GB/s", bandwidth(int(bytes))),
            ("matrix throughput", operations, "GFLOP/s", throughput()),
        ]
    ]


@cache
def bandwidth(bytes: int) -> float:
    """GB/s of reading so many bytes again and again."""
    buffer = torch.ones(max(bytes // 4, 1), device=device())
    return bytes / 1e9 / median(seconds(buffer.sum) for _ in range(9))


@cache
def throughput(size: int = 1024) -> float:
    """GFLOP/s of large float32 matrices."""
    matrix = torch.ones(size, size, device=device())
    return 2 * size**3 / 1e9 / median(seconds(lambda: matrix @ matrix) for _ in range(9))


# ---- models


@cache
def get_image_tokenizer(model: str | None, shape: str | None) -> ImageTokenizer:
    if model:
        image_tokenizer = load_image_tokenizer(model)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            image_tokenizer = ImageTokenizer(known(SIZES, shape)).to(device()).eval()
    config = image_tokenizer.config
    if (config.architecture, config.quantizer) != ("vitamin", "multi_codebook"):
        raise ValueError(
            f"{model or shape}: the loops of the reference, which this is compared with, know architecture vitamin and"
            f" quantizer multi_codebook, not {config.architecture} and {config.quantizer}"
        )
    return image_tokenizer


@cache
def get_model(model: str | None, shape: str | None) -> tuple[Mllm, Processor]:
    return load_model(model) if model else new_model(shape)


def new_model(shape: str) -> tuple[Mllm, Processor]:
    """A Llama of that width, the reference's code embedding (all of it) and code head (three more layers
    of the same Llama, one output of 4096 for eight sub-codebooks). The image tokenizer, which plays no part, is small.
    """
    width, layers = known(BACKBONES, shape)
    text = {"text_width": 16, "text_heads": 1, "text_layers": 1, "text_vocab_size": 8}
    sizes = ImageTokenizerConfig(depth=1, conv_widths=(16, 16), conv_depths=(1, 1), **text)
    processor = Processor(Processor.from_pretrained("scenes").tokenizer, sizes.num_positions, sizes.image_size)
    hidden = -(-8 * width // 3 // 256) * 256  # as in Llama: 8/3 of the width, rounded up
    backbone = {
        "vocab_size": len(processor.tokenizer),
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
    }
    config = MllmConfig(
        text_config=backbone,
        image_tokenizer=sizes.to_dict(),
        code_embedding="codebook",
        code_head_args={"layers": 3, "heads": width // 64, "hidden": hidden, "shared_output": True},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mllm(config).eval()
    for part in (model.backbone, model.code_embed, model.code_head, model.lm_head):
        part.bfloat16().float()
    return model.to(device()), processor


def smallest() -> tuple[Mllm, Processor]:
    """A model that is loaded for what comes with it."""
    processor = Processor(Processor.from_pretrained("scenes").tokenizer)
    text = {"vocab_size": len(processor.tokenizer), "hidden_size": 64, "intermediate_size": 64}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    sizes, head = SIZES["tiny"].to_dict(), {"layers": 1, "heads": 1}
    return Mllm(MllmConfig(text_config=text, image_tokenizer=sizes, code_head_args=head)), processor


def known(shapes: dict[str, Any], name: str) -> Any:
    if name not in shapes:
        raise ValueError(f"unknown --shape {name!r}; known for this command: {', '.join(shapes)}")
    return shapes[name]


# ---- the same result, then the time


def greedy(gaps: list[torch.Tensor]) -> Pick:
    """The likeliest entry under guidance; collects how far the second one is."""

    def pick(logits_BV: torch.Tensor, k: int) -> torch.Tensor:
        gaps.append(gap(guided(logits_BV)))
        return guided(logits_BV).argmax(-1).repeat(2)

    return pick


def gap(scores: torch.Tensor) -> torch.Tensor:
    """Between the best and the second-best of the last dimension."""
    best, second = scores.topk(2, -1).values.unbind(-1)
    return best - second


def check_codes(
    ours_NLK: torch.Tensor, baseline_NLK: torch.Tensor, gaps_NLK: torch.Tensor, in_turn: bool = False
) -> None:
    """Raises ValueError unless the codes are equal but for near ties. `in_turn`: each code depends on those before it,
    so that only the first difference of an image counts."""
    differ_NX = (ours_NLK != baseline_NLK).flatten(1)
    if in_turn:
        differ_NX &= differ_NX.cumsum(1) == 1
    wrong = (differ_NX.view_as(ours_NLK) & (gaps_NLK > NEAR_TIE)).nonzero().tolist()
    if wrong:
        image, position, k = wrong[0]
        raise ValueError(
            "not timed, as ours and the reference's loop give different codes, "
            f"first in image {image}, position {position}, sub-codebook {k}"
        )


def check_pixels(ours_N3HW: torch.Tensor, baseline_N3HW: torch.Tensor) -> None:
    error = ((ours_N3HW - baseline_N3HW).abs().max() / baseline_N3HW.abs().max()).item()
    if not error <= TOLERANCE:
        raise ValueError(f"not timed, as ours and the reference's loop give different images: {error:.1e} of the range")


def compare(name: str, ours: Callable, baseline: Callable, amounts: dict[str, float], repeats: int) -> list[Figure]:
    """`amounts`: what a run yields, by the unit of its rate. The check has warmed both ways up; taking turns, they
    share whatever else the machine does."""
    times = [(seconds(ours), seconds(baseline)) for _ in range(repeats)]
    mine, theirs = (median(column) for column in zip(*times, strict=True))
    spreads = [spread(column) for column in zip(*times, strict=True)]
    return [
        Figure(name, amount / mine, unit, amount / theirs, theirs / mine, *spreads) for unit, amount in amounts.items()
    ]


def seconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def spread(times: Sequence[float]) -> float:
    return (max(times) - min(times)) / median(times)


# ---- what is printed


def print_table(figures: Sequence[Figure]) -> None:
    table = Table("", "", "ours", "spread", "baseline", "spread", "ratio")
    for figure in figures:
        values = (
            f"{figure.value:.4g}",
            f"{figure.spread:.0%}",
            f"{figure.baseline:.4g}",
            f"{figure.baseline_spread:.0%}",
        )
        table.add_row(figure.name, figure.unit, *values, f"{figure.ratio:.2f}")
    Console().print(table)
    print(f"peak memory: {peak_memory(device()) / 2**30:.2f} GB")


def plot(figures: Sequence[Figure], title: str, file: Path) -> None:
    """A bar for each ratio; those of the roofline, which are fractions of a limit, are hatched."""
    from matplotlib.figure import Figure as Canvas

    ratios = {figure.name: figure.ratio for figure in figures}
    fractions = [", of " in name for name in ratios]
    canvas = Canvas(figsize=(8, 1.3 + 0.36 * len(ratios)), layout="constrained")
    canvas.suptitle(title)
    axes = canvas.add_subplot(xlim=(0, 1.12 * max(1, *ratios.values())))
    colors = ["#b9c9dd" if fraction else "#4c78a8" for fraction in fractions]
    hatches = ["//" if fraction else "" for fraction in fractions]
    bars = axes.barh([*ratios], [*ratios.values()], height=0.65, color=colors, edgecolor="white", hatch=hatches)
    labels = [f"{x:.0%}" if y else f"{x:.1f} x" for x, y in zip(ratios.values(), fractions, strict=True)]
    axes.axvline(1, color="black", linewidth=0.8, zorder=0)
    axes.bar_label(bars, labels, padding=3, bbox={"color": "white", "pad": 1})
    axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()
    axes.set_xlabel("times the baseline (line)" + "; hatched: part of the machine's own" * any(fractions))
    with finished(file) as part:
        canvas.savefig(part, format="png", dpi=120)


def report(args: argparse.Namespace, figures: Sequence[Figure]) -> dict[str, Any]:
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "plot")}
    settings |= {"device": device().type, "threads": torch.get_num_threads(), "torch": torch.__version__}
    settings |= {"peak_memory_gb": peak_memory(device()) / 2**30}
    if args.command == "generate":
        settings |= {"cfg_scale": GUIDANCE, **SAMPLING}
    return {"settings": settings, "figures": [asdict(figure) for figure in figures]}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add, subject = parser.add_argument, parser.add_mutually_exclusive_group(required=True)
    add("command", choices=BENCHES, help="what to time")
    subject.add_argument("--model", help="a model's name or folder")
    subject.add_argument(
        "--shape",
        help=f"encode, decode, train: {', '.join(SIZES)}; update, threads: scenes; others: {', '.join(BACKBONES)}",
    )
    add("--batch", type=int, nargs="+", default=[1], help="images at a time, one or more numbers (default: 1)")
    add("--repeats", type=int, default=5, help="timed runs of each way (default: %(default)s)")
    add("--tokens", type=int, default=64, help="length of an answer or prompt, or steps (default: %(default)s)")
    add("--positions", type=int, help="generate: only so many positions of each image (default: all)")
    add("--form", choices=FORMS, help="load: of the language model's weights (default: float32)")
    add("--plot", type=Path, metavar="FILE", help="draw the ratios into this PNG")
    add("--json", action="store_true", help="print one JSON object in place of the table")
    args = parser.parse_args(argv)
    numbers = [(name, getattr(args, name)) for name in ("repeats", "tokens", "positions")]
    for name, value in numbers + [("batch", size) for size in args.batch]:
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value} is below 1")
    if args.positions and args.command != "generate":
        raise ValueError(f"--positions is for generate, not for {args.command}")
    if args.form and args.command != "load":
        raise ValueError(f"--form is for load, not for {args.command}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    figures: list[Figure] = []
    for batch in args.batch:
        with Console(stderr=True).status(f"{args.command}, batch {batch}"):
            figures += BENCHES[args.command](args, batch)
    if args.plot:
        threads = f"{torch.get_num_threads()} threads" if device().type == "cpu" else device().type
        plot(figures, f"{args.command}, {args.model or args.shape}, {threads}, against the baseline", args.plot)
    if args.json:
        print(json.dumps(report(args, figures), indent=2))
    else:
        print_table(figures)


if __name__ == "__main__":
    cli(main)
