"""Talk with a model about images, and have it draw.

python -m scripts.chat --model scenes
python -m scripts.chat --model scenes --image cat.png --prompt "what is this?"

The first is a chat: /help lists its commands; without a terminal, lines of standard input are the user's.
The second prints the answer and nothing else. An image in an answer is saved under --out, and its path is
printed on a line of its own.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts._bar import drawing_bar
from scripts._errors import Parser, cli, one_line, plain, stop_at_once
from scripts._files import check_folder, save_png
from scripts._load import CFG_SCALE, QUANTIZATIONS, check_sampling, load_model

# torch, transformers and rich are imported inside functions: they take seconds, in which wrong options should
# already be told and Ctrl-C be heard.
if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console

    from mllm import Mllm, Processor

HELP = """\
/image FILE    show the model an image, along with your next message
/draw PROMPT   draw and save an image; your next message can be about it
/clear         begin a new chat, as when this one has become too long
/help          this list
/quit          leave (or Ctrl-D)"""

DRAWING = ("cfg_scale", "cfg_interval", "candidates")


class Chat:
    """One conversation. `images` wait for the next message; images in answers are saved in `out`."""

    def __init__(self, model: Mllm, processor: Processor, args: argparse.Namespace):
        self.model, self.processor, self.args = model, processor, args
        self.drawing = {name: getattr(args, name) for name in DRAWING}
        self.drawings = 0
        self.clear()

    def clear(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.images: list[Image.Image] = []

    def ask(self, text: str) -> Iterator[str | Path]:
        """The answer as it comes: text, and files of images. A question that fails leaves no trace."""
        from mllm import DrawingOptions, generate_text

        if not text.strip():
            raise ValueError("empty prompt: ask something")
        shown = [{"type": "image", "image": image} for image in self.images]
        question = {"role": "user", "content": [*shown, {"type": "text", "text": text.strip()}]}
        args, answer = self.args, []
        pieces = generate_text(
            self.model,
            self.processor,
            [*self.messages, question],
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            top_p=args.top_p,
            seed=args.seed + len(self.messages) // 2,
            drawing=DrawingOptions(**self.drawing),
        )
        for piece in pieces:
            add_piece(answer, piece)
            yield piece if isinstance(piece, str) else self.save(piece)
        self.messages += [question, {"role": "assistant", "content": answer}]
        self.images = []

    def draw(self, prompt: str) -> Path:
        from mllm import generate_images

        check_folder(self.args.out)
        with drawing_bar(1) as bar:
            [image] = generate_images(
                self.model,
                self.processor,
                [prompt],
                seeds=[self.args.seed + self.drawings],
                **self.drawing,
                progress=lambda done: bar(done / self.processor.num_positions),
            )
        self.images.append(image)
        return self.save(image)

    def save(self, image: Image.Image) -> Path:
        """The first free number is its name."""
        number = 1
        while (file := self.args.out / f"{number:04d}.png").exists():
            number += 1
        save_png(image, file)
        self.drawings += 1
        return file


def add_piece(answer: list[dict[str, Any]], piece: str | Image.Image) -> None:
    """Append to the content of a message; text in a row is one part, or it would be cut into other ids."""
    if not isinstance(piece, str):
        answer.append({"type": "image", "image": piece})
    elif answer and answer[-1]["type"] == "text":
        answer[-1]["text"] += piece
    else:
        answer.append({"type": "text", "text": piece})


def show(pieces: Iterator[str | Path], write: Callable[[str], Any]) -> None:
    """Text as it comes, files on lines of their own, and a line break at the end, or before an error."""
    inside_line = False
    try:
        for piece in pieces:
            if isinstance(piece, str):
                write(plain(piece))
            else:
                write(f"\n{piece}\n" if inside_line else f"{piece}\n")
            inside_line = isinstance(piece, str)
    except (ValueError, OSError):
        if inside_line:
            write("\n")
        raise
    if inside_line:
        write("\n")


def talk(chat: Chat) -> None:
    """Read and answer until the user leaves. What goes wrong is told in one line, and the chat goes on."""
    from rich.console import Console

    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    with suppress(AttributeError):  # of streams that are no files
        sys.stdin.reconfigure(errors="surrogateescape")  # one line in another encoding is refused, not all after it
    if sys.stdin.isatty():
        import readline  # noqa: F401  input() then edits lines and remembers them

        console.print(f"[bold]{chat.args.model}[/bold]: ask, or /help", style="dim")
    while True:
        try:
            line = read_line()
            if line in (None, "/quit"):
                return
            if line:
                respond(chat, line, console)
        except (ValueError, OSError) as error:
            errors.print(f"error: {one_line(error)}", style="red", markup=False, soft_wrap=True)


def read_line() -> str | None:
    """The user's next, on a terminal with a prompt; None at the end."""
    try:
        line = input("> ") if sys.stdin.isatty() else sys.stdin.readline() or None
    except EOFError:  # Ctrl-D
        print()
        line = None
    return line and line.strip()


def respond(chat: Chat, line: str, console: Console) -> None:
    """One line of the user: a command or a message."""
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if not line.startswith("/"):
        show(chat.ask(line), lambda text: console.print(text, end="", markup=False, soft_wrap=True))
    elif command == "/image":
        chat.images.append(load(rest.strip("'\"")))
        say(console, f"{rest}: ask about it")
    elif command == "/draw":
        console.print(str(chat.draw(rest)), markup=False, soft_wrap=True)
    elif command == "/clear":
        chat.clear()
        say(console, "a new chat")
    elif command == "/help":
        console.print(HELP, markup=False)
    else:
        raise ValueError(f"unknown command {command!r}; known: /image, /draw, /clear, /help, /quit")


def say(console: Console, text: str) -> None:
    """A remark of ours; only on a terminal, so that a pipe carries the model's answers alone."""
    if console.is_terminal:
        console.print(plain(text), style="dim", markup=False, soft_wrap=True)


def end_by_sigterm() -> None:
    """In one line, as Ctrl-C does; a file that is being written goes away."""

    def stop(*_: Any) -> None:
        print("stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)


def load(file: str) -> Image.Image:
    with stop_at_once():
        from tokenizer.transform import load_image
    if not file:
        raise ValueError("/image needs a file: /image cat.png")
    try:
        path = Path(file).expanduser()
    except RuntimeError as error:
        raise ValueError(f"no image file at {file}: nobody here is called {Path(file).parts[0][1:]!r}") from error
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name one image in it")
    return load_image(path)


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
    add("--cfg-scale", type=float, default=CFG_SCALE, help="guidance of drawings (default: %(default)s)")
    add("--cfg-interval", type=float, nargs=2, default=(0.0, 1.0), metavar=("A", "B"), help="part of it with guidance")
    add("--candidates", type=int, default=1, help="for an image; the model keeps its favourite (default: %(default)s)")
    add("--seed", type=int, default=0, help="of text and drawings (default: %(default)s)")
    add("--quantize", choices=QUANTIZATIONS, help="weights of the language model, on a CPU")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {args.max_new_tokens} is below 1: an answer needs room")
    if args.prompt is not None and not args.prompt.strip():
        raise ValueError("--prompt is empty: ask something, or leave it out for a chat")
    end_by_sigterm()
    if sys.stdout is None:
        raise ValueError("standard output is closed: there is nowhere to answer")
    if args.prompt is None and sys.stdin is None:
        raise ValueError("standard input is closed: ask with --prompt, or give lines to answer")
    check_sampling(args.seed, **{name: getattr(args, name) for name in DRAWING})
    check_sampling(temperature=args.temperature, top_p=args.top_p)
    images = [load(file) for file in args.image]
    chat = Chat(*load_model(args.model, args.quantize), args)
    chat.images = images
    if args.prompt is None:
        talk(chat)
    else:
        show(chat.ask(args.prompt), lambda text: print(text, end="", flush=True))


if __name__ == "__main__":
    cli(main)
