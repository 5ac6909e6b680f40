"""Put load on a server for some minutes, and measure: errors, latency, memory, and what sharing a batch is worth.

python -m scripts.serve_soak --model scenes --minutes 10 --out out/serve_soak.json

Starts scripts.serve on a free port of this machine. Clients chat about an image, stream, and draw; some hang up.
Exit status 1: a request failed.
"""

import argparse
import json
from pathlib import Path

from data_recipes.files import write_whole
from eval.bench.soak import soak
from scripts._errors import Parser, cli


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model", default="scenes", help="a model's name or folder (default: %(default)s)")
    add("--minutes", type=float, default=10, help="of load (default: %(default)s)")
    add("--clients", type=int, default=16, help="at the same time (default: %(default)s)")
    add("--rounds", type=int, default=3, help="of 8 requests, for the ratio (default: %(default)s)")
    add("--out", type=Path, metavar="FILE", help="write the figures there, too")
    args = parser.parse_args(argv)
    for name in ("minutes", "clients", "rounds"):
        if not getattr(args, name) > 0:
            raise ValueError(f"--{name} {getattr(args, name)} is not above 0")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    figures = soak(args.model, args.clients, 60 * args.minutes, args.rounds)
    told = json.dumps(figures, indent=2)
    if args.out:
        write_whole(args.out, told + "\n")
    print(told)
    return int(figures["error_count"] > 0)


if __name__ == "__main__":
    cli(main)
