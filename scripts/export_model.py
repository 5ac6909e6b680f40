"""Make a model folder to ship from a checkpoint of a run, with recipes, logs and curves beside it.

python -m scripts.export_model runs/scenes/step_010000/model --runs runs/scenes --out checkpoints/scenes \\
    --image-tokenizer runs/scenes_decoder/step_000600/model
python -m scripts.export_model runs/smol/step_001500/model --backbone smollm2 --runs runs/smol_draw runs/smol --out mine

With --backbone, of a run with adapters, only what trained beside it is shipped. The first use of the folder puts both
together: it needs the package that carries the backbone.
"""

from pathlib import Path

from scripts._errors import Parser, cli, stop_at_once


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("model", type=Path, help="the `model` folder of a checkpoint")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], metavar="RUN", help="runs that made it")
    parser.add_argument(
        "--image-tokenizer", type=Path, metavar="FOLDER", help="takes the model's place; its decoder was trained on"
    )
    parser.add_argument("--backbone", metavar="NAME", help="ship only what trained beside this one, such as smollm2")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)
    with stop_at_once():
        from training.lm.export import export_model, export_trained
    if args.backbone:
        export_trained(args.model, args.backbone, args.out, args.runs, args.image_tokenizer)
    else:
        export_model(args.model, args.out, args.runs, args.image_tokenizer)


if __name__ == "__main__":
    cli(main)
