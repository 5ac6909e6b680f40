"""Let a language model learn from its own drawings, by a recipe; run again to resume.

python -m scripts.train_rl training/stages/rl_grpo.yaml run.name=try2 optim.lr=2e-5
torchrun --nproc_per_node 2 -m scripts.train_rl training/stages/rl_rejection.yaml deepspeed.stage=3

docs/training.md says what methods and rewards there are, and what a run watches.
"""

from argparse import SUPPRESS

from scripts._errors import Parser, cli, stop_at_once


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("recipe", help="a YAML file, e.g. training/stages/rl_grpo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="changes to the recipe")
    parser.add_argument("--local_rank", help=SUPPRESS)  # the deepspeed launcher adds it; torch reads the environment
    args = parser.parse_args(argv)
    with stop_at_once():
        from eval.scenes.reward import rules
        from training.rl.rewards import REWARDS
        from training.rl.train import train_rl
        from training.run.recipe import RlConfig, load_config
    print(train_rl(load_config(RlConfig, args.recipe, args.overrides), {**REWARDS, "rules": rules}))


if __name__ == "__main__":
    cli(main)
