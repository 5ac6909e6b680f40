"""Evaluate a scenes model: questions, talk, drawings by GenEval's rules, edits, tokenizer, speed. Run again to go on.

python -m scripts.eval_scenes --model scenes --out out/eval_scenes
python -m scripts.eval_scenes --model scenes --parts questions,speed --limit 50 --out out/eval_quick
python -m scripts.eval_scenes --model mine --backbone smollm2 --parts unseen_forms,talk --out out/eval_talk
torchrun --nproc_per_node 2 -m scripts.eval_scenes --model scenes --parts questions,drawing --out out/eval_scenes

--limit holds for scenes and messages, too. Speed is what one process measures, while others work. With --backbone, talk
says what the model has kept of what a pretrained one knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts._about import about
from scripts._drawing import add_drawing_options
from scripts._errors import Parser, cli, stop_at_once
from scripts._load import QUANTIZATIONS, load_model
from scripts.draw_benchmark import add_benchmark_options, settings_of

# torch and transformers are imported inside functions: --help should not wait for them.
if TYPE_CHECKING:
    from eval.scenes.subject import Subject

DETECTOR = Path(__file__).resolve().parent.parent / "checkpoints/scenes/detector"


def write_results(file: Path, subject: Subject, results: dict[str, Any], argv: list[str] | None) -> None:
    """Everything that is needed to tell how the numbers came about."""
    from data_recipes.files import write_json
    from eval.scenes.suite import report

    content = {
        **about("eval_scenes", argv),
        "model": subject.name,
        "model_hash": subject.model.weights_hash(),
        "parts": results,
        "goals": [line._asdict() for line in report(results) if line.goal],
    }
    write_json(file, content)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--detector", type=Path, default=DETECTOR, help="folder (default: %(default)s)")
    parts = "speed,questions,free_wording,trained_forms,unseen_forms,talk,drawing,editing,tokenizer"
    parser.add_argument("--parts", help=f"of {parts} (default: all)")
    parser.add_argument("--backbone", metavar="NAME", help="the pretrained backbone to compare with, such as smollm2")
    parser.add_argument("--images-per-prompt", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--quantize", choices=QUANTIZATIONS, help="weights of the language model, on a CPU")
    add_benchmark_options(parser)
    add_drawing_options(parser, ["image_cfg_scale"])
    args = parser.parse_args(argv)
    settings = settings_of(args, args.images_per_prompt)
    with stop_at_once():
        from eval.scenes.detector import Detector
        from eval.scenes.subject import Subject
        from eval.scenes.suite import evaluate_scenes
        from eval.scenes.tables import print_report

        detector = Detector.from_pretrained(args.detector)
    subject = Subject(args.model, *load_model(args.model, args.quantize), detector, args.backbone)
    results = evaluate_scenes(subject, settings, args.out, args.parts and args.parts.split(","))
    if results is None:
        print("this process has done its share; the one that ends last prints the scores")
        return
    write_results(args.out / "results.json", subject, results, argv)
    print_report(results)


if __name__ == "__main__":
    cli(main)
