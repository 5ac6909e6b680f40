"""Is a model healthy on this machine? Loads it, reconstructs, answers, draws, and compares ways that must agree.

python -m scripts.doctor --model scenes

Compares what is installed with the ranges of requirements.txt and with requirements.lock, too, and tells device and
memory. The exit status is 0 when the model is healthy and no package is out of its range, else 1. A package that is
not installed is told with its purpose, and counts if no model runs without it.
"""

from __future__ import annotations

from scripts._errors import Parser, cli, stop_at_once
from scripts._load import load_model

# torch and transformers are imported inside functions: --help should not wait for them.


def main(argv: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--model", default="scenes", help="a model's name or folder (default: %(default)s)")
    args = parser.parse_args(argv)
    with stop_at_once():
        from eval.doctor import environment, examine, missing
    healthy = True
    for check in examine(args.model, load_model):
        print(f"{'ok  ' if check.healthy else 'FAIL'} {check.name}: {check.detail}", flush=True)
        healthy &= check.healthy
    for name, value in environment().items():
        print(f"     {name}: {value}")
    for package, reason in missing().items():
        print(f"     missing: {package} ({reason})")
    print(f"{args.model} is healthy" if healthy else f"{args.model} is not healthy")
    return 0 if healthy else 1


if __name__ == "__main__":
    cli(main)
