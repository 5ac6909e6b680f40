"""Check shards of messages before training: every sample is read as training would read it.

python -m scripts.validate_data "shards/chats/*.tar" --model scenes
python -m scripts.validate_data "codes/{chats,photos}/*.tar" --model runs/scenes/step_010000/model --max-length 2048

Names every bad sample by shard and key, counts samples, images, turns and tokens, says how long sequences are and how
much of them carries loss, and writes a page of samples on which the loss is marked. Exit status 0: all samples are
good; 1: some are not; 2: it could not be checked.
"""

import argparse
from pathlib import Path

from data_recipes.files import write_whole
from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder
from scripts._load import load_model


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
        from training.data.validation import open_source, validate
        from training.lm.sequences import preview_page
    source = open_source(args.shards, model, processor, args.max_length)
    print(source.shards.taken())
    found = validate(source, processor, watch(range(len(source.shards)), "samples"), args.preview)
    for problem in found.problems:
        print(f"bad: {problem}")
    if found.totals.lengths:
        print(found.totals.report(processor.num_positions))
        page = preview_page(processor, model.image_tokenizer, found.shown, "Training samples")
        write_whole(args.out / "preview.html", page)
        print(f"\n{len(found.shown)} samples, loss marked: {args.out / 'preview.html'}")
    print(f"{len(found.problems)} problems" if found.problems else "no problems")
    return int(bool(found.problems))


if __name__ == "__main__":
    cli(main)
