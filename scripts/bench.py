"""Time a model against the loops of the reference implementation, at the same weights and in the same run.

python -m scripts.bench encode --model scenes --batch 1 8
python -m scripts.bench decode --shape unitok-base --batch 4
python -m scripts.bench generate --shape w320 --batch 1 8 --positions 32 --json

encode: pixels to codes. decode: codes to PIL images. generate: prompts to the codes of images, with guidance.
--shape takes random weights instead of a model's. For encode and decode it names the sizes of an image tokenizer,
for generate a width of the language model (w320: 320), with the reference's code embedding and code head.

Both ways must first give the same result, greedily where codes are drawn; after that, they are timed in turns.
Figures come from the median time; spread is (slowest - fastest) / median. A ratio above 1: ours is faster.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache, LlamaConfig, LlamaModel

from mllm import Mllm, MllmConfig, Processor
from mllm.codes import DepthHead, Pick
from mllm.generate import sample_codes
from scripts._errors import Parser, cli
from scripts._load import load_model
from scripts.reconstruct import load_image_tokenizer
from tokenizer import SIZES, ImageTokenizer, ImageTokenizerConfig
from tokenizer.transform import to_images

BACKBONES = {"tiny": (64, 2), "w320": (320, 6), "w576": (576, 30)}  # width and layers
GUIDANCE = 5.0
SAMPLING = {"temperature": 0.9, "top_k": 2048, "top_p": 0.96}  # as GUIDANCE, the defaults of the reference's script
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


# ---- the reference's loops (github FoundationVision/UniTok, commit bb8012e) on our weights


def reference_encode(image_tokenizer: ImageTokenizer, pixels_N3HW: torch.Tensor) -> torch.Tensor:
    """-> codes_NLK: one sub-codebook after the other, each normalised at every call."""
    encoder, codebooks_KVq = image_tokenizer.encoder, image_tokenizer.quantizer.codebooks_KVq
    x_NLC = encoder.patch_embed["backbone"](pixels_N3HW).flatten(2).transpose(1, 2)
    slices = image_tokenizer.quant_proj(encoder.norm(encoder.blocks(x_NLC))).chunk(len(codebooks_KVq), -1)
    codes = [
        (F.normalize(z_NLq, dim=-1) @ F.normalize(codebook_Vq, dim=-1).T).argmax(-1)
        for z_NLq, codebook_Vq in zip(slices, codebooks_KVq, strict=True)
    ]
    return torch.stack(codes, -1)


def reference_decode(image_tokenizer: ImageTokenizer, codes_NLK: torch.Tensor) -> Iterator[torch.Tensor]:
    """-> pixels_13HW of one image after the other."""
    grid = image_tokenizer.config.grid
    for codes_LK in codes_NLK:
        codebooks_KVq = image_tokenizer.quantizer.codebooks_KVq
        parts = [F.normalize(codebook_Vq, dim=-1)[codes_LK[:, k]] for k, codebook_Vq in enumerate(codebooks_KVq)]
        yield image_tokenizer.decoder(image_tokenizer.post_quant_proj(torch.cat(parts, -1)[None]), (grid, grid))


def reference_body(head: DepthHead) -> LlamaModel:
    """The layers of the code head as the reference has them: transformers' own, no matrices joined."""
    first = head.layers[0]
    config = LlamaConfig(
        vocab_size=3,  # unused; as few as its config takes
        hidden_size=first.out.in_features,
        intermediate_size=first.down.in_features,
        num_hidden_layers=len(head.layers),
        num_attention_heads=first.heads,
        rms_norm_eps=head.norm.eps,
        rope_parameters={"rope_type": "default", "rope_theta": head.rope_theta},
    )
    body = LlamaModel(config).eval()
    weights = {"embed_tokens.weight": body.embed_tokens.weight, "norm.weight": head.norm.weight}
    for number, layer in enumerate(head.layers):
        parts = {
            "input_layernorm": layer.norm1.weight,
            "post_attention_layernorm": layer.norm2.weight,
            "self_attn.o_proj": layer.out.weight,
            "mlp.down_proj": layer.down.weight,
            **dict(zip([f"self_attn.{name}_proj" for name in "qkv"], layer.qkv.weight.chunk(3), strict=True)),
            **dict(zip(["mlp.gate_proj", "mlp.up_proj"], layer.gate_up.weight.chunk(2), strict=True)),
        }
        weights |= {f"layers.{number}.{name}.weight": weight for name, weight in parts.items()}
    body.load_state_dict(weights)
    return body.to(first.out.weight)


def reference_position(head: DepthHead, body: LlamaModel, h_BD: torch.Tensor, pick: Pick) -> torch.Tensor:
    """-> codes_BK. Nothing is kept between sub-codes: the layers run on 1, 2, ... K inputs."""
    inputs, codes = [head.enter(h_BD)], []
    for k in range(head.num_codebooks):
        x_BkW = body(inputs_embeds=torch.stack(inputs, 1), use_cache=False).last_hidden_state
        codes.append(pick(head.outputs[k % len(head.outputs)](x_BkW[:, -1]), k))
        if k < len(head.tables):
            inputs.append(head.tables[k](codes[-1]))
    return torch.stack(codes, 1)


def reference_draw(
    model: Mllm, body: LlamaModel, ids_BT: torch.Tensor, mask_BT: torch.Tensor, positions: int, pick: Pick
) -> torch.Tensor:
    """-> codes_BLK after left-padded prompts, with a dynamic cache and a mask that grows.

    Codes are embedded knowing those before them, as in training; the published loop forgets them, which costs as much.
    """
    cache, embedded, codes = DynamicCache(config=model.config.text_config), {}, []
    x_BTD = model.get_input_embeddings()(ids_BT)
    for _ in range(positions):
        places_BT = (mask_BT.cumsum(1) - 1).clamp_min(0)[:, -x_BTD.shape[1] :]
        state = {"attention_mask": mask_BT, "position_ids": places_BT, "past_key_values": cache, "use_cache": True}
        h_BD = model.backbone(inputs_embeds=x_BTD, **state).last_hidden_state[:, -1]
        codes.append(reference_position(model.code_head, body, h_BD, pick))
        x_BTD = model.code_embed(codes[-1][:, None], embedded)
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), 1)], 1)
    return torch.stack(codes, 1)


def reference_pick(temperature: float, top_k: int, top_p: float) -> Pick:
    """Guidance, temperature, top-k, top-p by sorting the whole vocabulary, and a draw."""

    def pick(logits_BV: torch.Tensor, k: int) -> torch.Tensor:
        logits_BV = guided(logits_BV) / temperature
        lowest = logits_BV.topk(min(top_k, logits_BV.shape[-1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < lowest, float("-inf"))
        ordered, order = logits_BV.sort(descending=True)
        outside = ordered.softmax(-1).cumsum(-1) > top_p
        outside = outside.roll(1, -1).index_fill(-1, outside.new_zeros(1, dtype=torch.long), False)
        logits_BV = logits_BV.masked_fill(outside.scatter(-1, order, outside), float("-inf"))
        return torch.multinomial(logits_BV.softmax(-1), 1)[:, 0].repeat(2)

    return pick


def guided(logits_BV: torch.Tensor) -> torch.Tensor:
    cond, uncond = logits_BV.chunk(2)
    return uncond + GUIDANCE * (cond - uncond)


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
        return sample_codes(model, processor, samples, generators, GUIDANCE, **sampling)

    def reference(pick: Pick) -> torch.Tensor:
        return reference_draw(model, body, *prompts, positions, pick)[:batch]

    gaps: list[torch.Tensor] = []
    codes_NLK = reference(greedy(gaps))
    check_codes(ours(temperature=0.0), codes_NLK, torch.stack(gaps, 1).view_as(codes_NLK), in_turn=True)
    return compare(
        f"generate, batch {batch}",
        lambda: ours(**SAMPLING),
        lambda: reference(reference_pick(**SAMPLING)),
        {"images/s": batch * positions / whole, "codes/s": codes_NLK.numel()},
        args.repeats,
    )


BENCHES = {"encode": bench_encode, "decode": bench_decode, "generate": bench_generate}


@cache
def get_image_tokenizer(model: str | None, shape: str | None) -> ImageTokenizer:
    if model:
        return load_image_tokenizer(model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ImageTokenizer(known(SIZES, shape)).to(device()).eval()


@cache
def get_model(model: str | None, shape: str | None) -> tuple[Mllm, Processor]:
    """For a shape: a Llama of that width, the reference's code embedding (all of it) and code head (three more layers
    of the same Llama, one output of 4096 for eight sub-codebooks). The image tokenizer, which plays no part, is small.
    """
    if model:
        loaded = load_model(model)
        if not isinstance(loaded[0].code_head, DepthHead):
            raise ValueError(f"{model} has a code head {loaded[0].config.code_head!r}: generate compares depth heads")
        return loaded
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
        return Mllm(config).to(device()).eval(), processor


def known(shapes: dict[str, Any], name: str) -> Any:
    if name not in shapes:
        raise ValueError(f"unknown --shape {name!r}; known for this command: {', '.join(shapes)}")
    return shapes[name]


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


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
    table = Table("", "", "ours", "spread", "reference", "spread", "ratio")
    for figure in figures:
        values = (
            f"{figure.value:.4g}",
            f"{figure.spread:.0%}",
            f"{figure.baseline:.4g}",
            f"{figure.baseline_spread:.0%}",
        )
        table.add_row(figure.name, figure.unit, *values, f"{figure.ratio:.2f}")
    Console().print(table)


def report(args: argparse.Namespace, figures: Sequence[Figure]) -> dict[str, Any]:
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    settings |= {"device": device(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    if args.command == "generate":
        settings |= {"cfg_scale": GUIDANCE, **SAMPLING}
    return {"settings": settings, "figures": [asdict(figure) for figure in figures]}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add, subject = parser.add_argument, parser.add_mutually_exclusive_group(required=True)
    add("command", choices=BENCHES, help="what to time")
    subject.add_argument("--model", help="a model's name or folder")
    subject.add_argument("--shape", help=f"encode, decode: {', '.join(SIZES)}; generate: {', '.join(BACKBONES)}")
    add("--batch", type=int, nargs="+", default=[1], help="images at a time, one or more numbers (default: 1)")
    add("--repeats", type=int, default=5, help="timed runs of each way (default: %(default)s)")
    add("--positions", type=int, help="generate: only so many positions of each image (default: all)")
    add("--json", action="store_true", help="print one JSON object in place of the table")
    args = parser.parse_args(argv)
    for name, value in [("repeats", args.repeats), ("positions", args.positions), *(("batch", n) for n in args.batch)]:
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value} is below 1")
    if args.positions and args.command != "generate":
        raise ValueError(f"--positions is for generate, not for {args.command}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    figures: list[Figure] = []
    for batch in args.batch:
        with Console(stderr=True).status(f"{args.command}, batch {batch}"):
            figures += BENCHES[args.command](args, batch)
    if args.json:
        print(json.dumps(report(args, figures), indent=2))
    else:
        print_table(figures)


if __name__ == "__main__":
    cli(main)
