"""Merge an adapter of a run with model.lora into the weights that it stands beside, as a model like any other.

python -m scripts.merge_adapter runs/smollm2/step_000500/adapter --out merged
python -m scripts.merge_adapter adapter init_from=elsewhere/model --out merged

The weights must be those that the adapter was trained beside: it knows their hash.
A checkpoint's `model` folder is merged already; `adapter`, much smaller, holds only what trained. scripts.export_model
makes a folder to ship from either. Words a.b=c change where the adapter's recipe takes its model from.
"""

from dataclasses import asdict
from pathlib import Path

from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder

SOURCES = ("init_from", "image_tokenizer", "text_tokenizer", "backbone")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("adapter", type=Path, help="the `adapter` folder of a checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="changes to the recipe's `model`")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)
    check_folder(args.out)
    with stop_at_once():
        from training.lm.build import build_model, weights_to_save
        from training.lm.lora import load_adapter
        from training.run.recipe import ModelConfig, load_config
        from training.run.values import leaves
    recipe = args.adapter / "model.yaml"
    before, config = load_config(ModelConfig, recipe), load_config(ModelConfig, recipe, args.overrides)
    now = dict(leaves(asdict(config)))
    for key, value in leaves(asdict(before)):
        if now.get(key) != value and key.partition(".")[0] not in SOURCES:
            raise ValueError(f"{key} was {value} in training, not {now.get(key)}: only {', '.join(SOURCES)} can change")
    model, processor, _ = build_model(config)
    load_adapter(model, args.adapter)
    model.save_pretrained(args.out, state_dict=weights_to_save(model.state_dict(), config))
    processor.save_pretrained(args.out)
    print(args.out)


if __name__ == "__main__":
    cli(main)
