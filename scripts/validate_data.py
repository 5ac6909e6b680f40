"""Check shards of messages before training: every sample is read as training would read it.

python -m scripts.validate_data "shards/chats/*.tar" --model scenes
python -m scripts.validate_data "codes/{chats,photos}/*.tar" --model runs/scenes/step_010000/model --max-length 2048

Names every bad sample by shard and key, counts samples, images, turns and tokens, says how long sequences are and how
much of them carries loss, and writes a page of samples on which the loss is marked. Exit status 0: all samples are
good; 1: some are not; 2: it could not be checked.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder, save_text
from scripts._load import load_model

# torch is imported inside functions: --help should not wait for it.
if TYPE_CHECKING:
    from mllm import Processor
    from mllm.text.processor import Sample


@dataclass
class Totals:
    """Over good samples."""

    lengths: list[int] = field(default_factory=list)
    answers: int = 0
    images_read: int = 0
    images_drawn: int = 0
    text_targets: int = 0

    def add(self, sample: Sample, processor: Processor) -> None:
        targets = [label for label in sample.labels if label >= 0]
        self.lengths.append(len(sample.ids))
        self.answers += targets.count(processor.eos_id)
        self.images_drawn += sum(sample.is_target)
        self.images_read += len(sample.images) - sum(sample.is_target)
        self.text_targets += len(targets)

    def report(self, num_positions: int) -> str:
        tokens, codes = sum(self.lengths), self.images_drawn * num_positions
        rows = {
            "samples": f"{len(self.lengths):,}",
            "answers": f"{self.answers:,}",
            "images": f"{self.images_read:,} to read, {self.images_drawn:,} to draw",
            "tokens": f"{tokens:,}, mean {tokens / len(self.lengths):.0f}, longest {max(self.lengths):,}",
            "with loss": f"{self.text_targets / tokens:.1%} as text, {codes / tokens:.1%} as image positions",
        }
        lines = "\n".join(f"{name:<12} {value}" for name, value in rows.items())
        return f"{lines}\n\ntokens of a sample\n{histogram(self.lengths)}"


def histogram(lengths: Sequence[int], bars: int = 10, width: int = 40) -> str:
    """Counts of lengths as lines of text."""
    step = -(-(max(lengths) + 1) // bars)
    counts = [0] * bars
    for length in lengths:
        counts[length // step] += 1
    return "\n".join(
        f"{place * step:>7} to {(place + 1) * step - 1:<7} {'#' * -(-count * width // max(counts)):{width}} {count}"
        for place, count in enumerate(counts)
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("shards", nargs="+", help="names or patterns")
    add("--model", required=True, help="name or folder: its text tokenizer, template and codes")
    add("--max-length", type=int, help="longer samples are bad (default: what the model can read)")
    add("--preview", type=int, default=20, metavar="N", help="samples on the page (default: %(default)s)")
    add("--out", type=Path, default=Path("out/validate_data"), help="folder for preview.html (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    check_folder(args.out)
    model, processor = load_model(args.model)
    with stop_at_once():
        from eval.pieces import watch
        from training.data.mixture import ImageForm, MessageShards
        from training.lm.sequences import preview_page
    form = ImageForm(model.image_tokenizer, processor.preparation)
    max_length = args.max_length or model.config.text_config.max_position_embeddings
    source = MessageShards(args.shards, processor, form, max_length)
    print(source.shards.taken())
    totals, problems, shown = Totals(), list(source.damages), []
    every = max(1, len(source.shards) // max(1, args.preview))
    for index in watch(range(len(source.shards)), "samples"):
        try:
            sample = source.read(index)
        except ValueError as error:
            problems.append(str(error))
            continue
        totals.add(sample, processor)
        if len(totals.lengths) % every == 0 and len(shown) < args.preview:
            shown.append((source.shards.name(index), sample))
    for problem in problems:
        print(f"bad: {problem}")
    if totals.lengths:
        print(totals.report(processor.num_positions))
        save_text(preview_page(processor, model.image_tokenizer, shown, "Training samples"), args.out / "preview.html")
        print(f"\n{len(shown)} samples, loss marked: {args.out / 'preview.html'}")
    print(f"{len(problems)} problems" if problems else "no problems")
    return int(bool(problems))


if __name__ == "__main__":
    cli(main)
