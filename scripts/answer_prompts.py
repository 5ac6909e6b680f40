"""A pretrained backbone's own answers to everyday prompts, as shards of messages; training on them keeps what it knew.

python -m scripts.answer_prompts --backbone smollm2 --out shards/answers
python -m scripts.answer_prompts --backbone smollm2 --prompts mine.txt --out shards/mine
torchrun --nproc_per_node 2 -m scripts.answer_prompts --backbone smollm2 --out shards/answers

Without --prompts, they are those of data_recipes/scenes/language/prompts.py. The most likely id is taken each time, so
a backbone always gives the same shards. Answers that do not end are left out. Run again to go on.
"""

from pathlib import Path

from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder

TOGETHER = 32  # prompts in a shard, which are answered as one batch


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--backbone", required=True, metavar="NAME", help="as in recipes: smollm2, a folder or a hub id")
    add("--out", type=Path, required=True, help="folder for the shards")
    add("--prompts", type=Path, metavar="FILE", help="one a line (default: those of the scenes world)")
    add("--limit", type=int, metavar="N", help="the first N prompts only")
    add("--max-new-tokens", type=int, default=256, help="an answer's most (default: %(default)s)")
    args = parser.parse_args(argv)
    check_folder(args.out)
    with stop_at_once():
        from data_recipes.files import read_lines
        from data_recipes.scenes.language import PROMPTS
        from eval.pieces import claim, digest
        from scripts._shards import Samples, write_shards
        from training.data.own_answers import answered
        from training.lm.build import build_backbone
    ours = [prompt for kind in PROMPTS.values() for prompt in kind]
    prompts = [line.strip() for line in read_lines(args.prompts) if line.strip()] if args.prompts else ours
    prompts = prompts[: args.limit]
    if not prompts:
        raise ValueError("no prompts: see --prompts and --limit")
    settings = {"backbone": args.backbone, "prompts": digest(prompts), "max_new_tokens": args.max_new_tokens}
    claim(args.out, settings)
    model, processor = build_backbone(args.backbone)
    firsts = range(0, len(prompts), TOGETHER)

    def of_shard(place: int) -> Samples:
        return answered(model, processor, prompts[firsts[place] :][:TOGETHER], firsts[place], args.max_new_tokens)

    print(write_shards(args.out, [f"{n:06d}.tar" for n in range(len(firsts))], of_shard, max_bad=len(prompts)))


if __name__ == "__main__":
    cli(main)
