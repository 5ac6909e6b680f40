"""Train the language model by a recipe; run again to resume.

python -m scripts.train training/stages/mixed.yaml run.name=try2 optim.lr=5e-4
torchrun --nproc_per_node 2 -m scripts.train training/stages/mixed.yaml
deepspeed --num_gpus 2 --module scripts.train training/stages/mixed.yaml deepspeed.stage=3 "optim.muon=[]"

docs/training.md says what each of these does, how a run is resumed, and how several machines are used.
"""

from argparse import SUPPRESS

from scripts._errors import Parser, cli, stop_at_once


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("recipe", help="a YAML file, e.g. training/stages/mixed.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="changes to the recipe")
    parser.add_argument("--local_rank", help=SUPPRESS)  # the deepspeed launcher adds it; torch reads the environment
    args = parser.parse_args(argv)
    with stop_at_once():
        from training.lm.train import train
        from training.run.recipe import TrainConfig, load_config
    print(train(load_config(TrainConfig, args.recipe, args.overrides)))


if __name__ == "__main__":
    cli(main)
