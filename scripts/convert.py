"""Convert the released weights of UniTok, and write them back as the reference reads them.

python -m scripts.convert unitok unitok_tokenizer.pth checkpoints/unitok
python -m scripts.convert unitok-mllm unitok_mllm checkpoints/unitok-mllm --image-tokenizer unitok_tokenizer.pth
python -m scripts.convert export checkpoints/unitok-mllm unitok_mllm_again
"""

import shutil
from pathlib import Path

from data_recipes.files import whole
from scripts._errors import Parser, cli, stop_at_once


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "what", choices=["unitok", "unitok-mllm", "export"], help="kind of SOURCE; export: the way back"
    )
    parser.add_argument("source", type=Path, help="unitok_tokenizer.pth, the folder unitok_mllm, or one converted")
    parser.add_argument("out", type=Path, help="folder to write, not there yet")
    parser.add_argument(
        "--image-tokenizer",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="of unitok-mllm; else unitok_tokenizer.pth in or beside it",
    )
    parser.add_argument(
        "--projection", choices=["full", "causal"], help="causal: weights of the first release (2025-02); default: full"
    )
    args = parser.parse_args(argv)
    if args.image_tokenizer and args.what != "unitok-mllm":
        raise ValueError(f"--image-tokenizer is not for {args.what}")
    if args.projection and args.what == "export":
        raise ValueError("--projection is not for export")
    if args.out.exists():
        raise ValueError(f"{args.out} is there already: remove it, or choose another")
    with stop_at_once():
        from transformers.utils import logging

        from eval.pieces import bytes_bar
        from mllm import unitok_mllm as mllm
        from tokenizer import unitok
    logging.set_verbosity_error()
    causal, lines = args.projection == "causal", []
    for killed in args.out.parent.glob(f".{args.out.name}.*.part"):
        shutil.rmtree(killed)
    with whole(args.out) as out, bytes_bar() as progress:
        out.mkdir()
        if args.what == "unitok":
            lines = unitok.convert_unitok(unitok.read_unitok(args.source, causal), out, progress)
        elif args.what == "unitok-mllm":
            image_tokenizer = mllm.find_image_tokenizer(args.source, args.image_tokenizer, causal)
            lines = mllm.convert_unitok_mllm(args.source, image_tokenizer, out, progress)
        elif unitok.read_json(args.source / "config.json").get("model_type") == "mllm":
            mllm.export_unitok_mllm(args.source, out, progress)
        else:
            unitok.export_unitok(unitok.read_folder(args.source), out)
    print(*lines, f"wrote {args.out}", sep="\n")


if __name__ == "__main__":
    cli(main)
