"""Talk with a model about images, and have it draw.

python -m scripts.chat --model scenes
python -m scripts.chat --model scenes --image cat.png --prompt "what is this?"

The first is a chat: /help lists its commands; without a terminal, lines of standard input are the user's.
The second prints the answer and nothing else. An image in an answer is saved under --out, and its path is
printed on a line of its own.
"""

import argparse
import sys
from pathlib import Path

from scripts._drawing import OF_IMAGES, add_drawing_options, check_seed, check_writing, drawing_options
from scripts._errors import Parser, cli, stop_at_once
from scripts._files import open_image
from scripts._load import QUANTIZATIONS, load_model


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model", default="scenes", help="a model's name or folder (default: %(default)s)")
    add("--image", nargs="+", action="extend", default=[], metavar="FILE", help="images to talk about")
    add("--prompt", metavar="TEXT", help="ask this, print the answer, and leave")
    add("--out", type=Path, default=Path("out/chat"), help="folder for drawn images (default: %(default)s)")
    add("--max-new-tokens", type=int, default=64, help="longest answer (default: %(default)s)")
    add("--temperature", type=float, default=0.0, help="of text; 0: most likely (default: %(default)s)")
    add("--top-p", type=float, default=1.0, help="of text; 1: all words (default: %(default)s)")
    add_drawing_options(parser, OF_IMAGES)
    add("--seed", type=int, default=0, help="of text and drawings (default: %(default)s)")
    add("--quantize", choices=QUANTIZATIONS, help="weights of the language model, on a CPU")
    args = parser.parse_args(argv)
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {args.max_new_tokens} is below 1: an answer needs room")
    if args.prompt is not None and not args.prompt.strip():
        raise ValueError("--prompt is empty: ask something, or leave it out for a chat")
    if sys.stdout is None:
        raise ValueError("standard output is closed: there is nowhere to answer")
    if args.prompt is None and sys.stdin is None:
        raise ValueError("standard input is closed: ask with --prompt, or give lines to answer")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    check_seed(args.seed)
    drawing, writing = drawing_options(args, OF_IMAGES), {"temperature": args.temperature, "top_p": args.top_p}
    check_writing(**writing)
    images = [open_image(file) for file in args.image]
    model, processor = load_model(args.model, args.quantize)
    with stop_at_once():
        from mllm.decode.options import DrawingOptions, Sampling
        from mllm.text.chat_session import ChatSession
        from scripts._chat_lines import show
        from scripts._pictures import picture
        from scripts._terminal import talk
    options = Sampling(**writing), DrawingOptions(**drawing), args.max_new_tokens, args.seed
    chat = ChatSession(model, processor, *options)
    chat.images = images
    for image in images:
        picture(image)
    if args.prompt is None:
        talk(chat, args.model, args.out)
    else:
        show(chat.ask(args.prompt), lambda text: print(text, end="", flush=True), args.out)


if __name__ == "__main__":
    cli(main)
