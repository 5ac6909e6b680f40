"""Train the detector that judges drawn scenes; run again to go on from its last checkpoint.

python -m scripts.train_detector --out checkpoints/scenes/detector
"""

from pathlib import Path

from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, config.json and log.jsonl")
    parser.add_argument("--steps", type=int, default=2000, help="updates of 32 images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)
    for name, least in (("steps", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} {getattr(args, name)} is below {least}")
    check_folder(args.out)
    with stop_at_once():
        from eval.scenes.detector_training import train_detector
    for kind, tasks in train_detector(args.out, args.steps, args.seed).items():
        print(kind, " ".join(f"{task} {value:.3f}" for task, value in tasks.items()))


if __name__ == "__main__":
    cli(main)
