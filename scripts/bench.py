"""Time a model against plain baselines, at the same weights and in the same run.

python -m scripts.bench encode --model scenes --batch 1 8  # pixels to codes
python -m scripts.bench decode --shape unitok-base --batch 4  # codes to images
python -m scripts.bench generate --shape w320 --batch 1 8 --positions 32  # prompts to codes, with guidance
python -m scripts.bench answer --model scenes --tokens 64  # an image and a question to text
python -m scripts.bench step --shape w576 --tokens 16  # a position, weights of each form
python -m scripts.bench kernels --batch 1 8  # a position, by C++ and inductor, against eager; 5 minutes
python -m scripts.bench prefill --shape 7b-layers --tokens 256  # a prompt of --tokens
python -m scripts.bench load --shape w576 --form int8  # files to weights
python -m scripts.bench train --shape scenes --batch 32  # an update of an image tokenizer
python -m scripts.bench update --shape scenes --batch 8  # an update of a language model
python -m scripts.bench rl --model scenes --batch 1  # a step of learning from drawings, of --batch prompts
python -m scripts.bench threads  # numbers of threads, allocators
python -m scripts.bench gpu > gpu.md  # a page about this GPU, in 20 minutes

encode, decode and generate run against the reference's loops, answer and step against transformers, quantized steps
against the fastest that are not, prefill against matrices of this machine, load against files, train against a plain
float32 loop, update with what makes it fast or small against doing without, rl against drawing by passes of training,
threads as a command chooses them against others. --shape: random weights. Both ways must give the same result. Figures
are of median times (threads: of the fastest), spread is (slowest - fastest) / median. "of ...": the machine's share.
"""

import argparse
import json
from dataclasses import fields
from pathlib import Path

from eval.bench import BACKBONES, BENCHES, KERNEL_SHAPES, Options, print_gpu_page, run_bench
from scripts._errors import Parser, cli, stop_at_once
from scripts._load import QUANTIZATIONS


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add, subject = parser.add_argument, parser.add_mutually_exclusive_group()
    add("command", choices=BENCHES, help="what to time")
    subject.add_argument("--model", help="a model's name or folder")
    sizes = "encode, decode, train: an image tokenizer's, as unitok-base or scenes; update, threads: scenes; kernels:"
    subject.add_argument("--shape", help=f"{sizes} {', '.join(KERNEL_SHAPES)}; others: {', '.join(BACKBONES)}")
    add("--batch", type=int, nargs="+", default=[1], help="images at a time, one or more numbers (default: 1)")
    add("--repeats", type=int, default=5, help="timed runs of each way (default: %(default)s)")
    add("--tokens", type=int, default=64, help="length of an answer or prompt, or steps (default: %(default)s)")
    add("--positions", type=int, help="generate: only so many positions of each image (default: all)")
    add("--form", choices=("float32", "bfloat16", *QUANTIZATIONS), help="load: of the weights (default: float32)")
    add("--device", help="gpu: cpu, with --shape tiny, runs the same code anywhere")
    add("--plot", type=Path, metavar="FILE", help="draw the ratios into this PNG")
    add("--json", action="store_true", help="print one JSON object in place of the table")
    args = parser.parse_args(argv)
    if args.model if args.command in ("kernels", "update", "threads", "gpu") else not (args.model or args.shape):
        raise ValueError(f"{args.command} " + ("takes no --model" if args.model else "needs a --model or a --shape"))
    numbers = [(name, getattr(args, name)) for name in ("repeats", "tokens", "positions")]
    for name, value in numbers + [("batch", size) for size in args.batch]:
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value} is below 1")
    for name, command in (("positions", "generate"), ("form", "load"), ("device", "gpu")):
        if getattr(args, name) and args.command != command:
            raise ValueError(f"--{name} is for {command}, not for {args.command}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with stop_at_once():
        from eval.bench.figures import plot, print_table, report
    if args.command == "gpu":
        return print_gpu_page(args.shape, args.device or "cuda")
    options = Options(**{field.name: getattr(args, field.name) for field in fields(Options)})
    figures = run_bench(args.command, options, args.batch)
    if args.plot:
        plot(figures, f"{args.command}, {args.model or args.shape}", args.plot)
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name not in ("json", "plot", "device")}
        print(json.dumps(report(settings, figures), indent=2))
    else:
        print_table(figures)


if __name__ == "__main__":
    cli(main)
