"""What a line of the user does in a chat, and how an answer is shown."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from eval.pieces import drawing_bar
from mllm.text.chat_session import ChatSession
from scripts._errors import plain
from scripts._files import check_folder, open_image
from scripts._pictures import picture, save

HELP = """\
/image FILE    show the model an image, along with your next message: a question, or what to change
/draw PROMPT   draw and save an image; your next message can be about it, or change it
/clear         begin a new chat, as when this one has become too long
/help          this list
/quit          leave (or Ctrl-D)"""


def respond(chat: ChatSession, line: str, console: Console, out: Path) -> None:
    """One line of the user: a command or a message."""
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if not line.startswith("/"):
        show(chat.ask(line), lambda text: console.print(text, end="", markup=False, soft_wrap=True), out)
    elif command == "/image":
        chat.images.append(open_image(rest.strip("'\"")))
        say(console, f"{rest}: ask about it, or say what to change")
        picture(chat.images[-1])
    elif command == "/draw":
        check_folder(out)
        with drawing_bar(1) as bar:
            image = chat.draw(rest, lambda done: bar(done / chat.processor.num_positions))
        console.print(str(save(image, out)), markup=False, soft_wrap=True)
        picture(image)
    elif command == "/clear":
        chat.clear()
        say(console, "a new chat")
    elif command == "/help":
        console.print(HELP, markup=False)
    else:
        raise ValueError(f"unknown command {command!r}; known: /image, /draw, /clear, /help, /quit")


def show(pieces: Iterator[str | Image.Image], write: Callable[[str], Any], out: Path) -> None:
    """Text as it comes; images are saved, and their files named on lines of their own. A line break at the end, or
    before an error."""
    inside_line = False
    try:
        for piece in pieces:
            if isinstance(piece, str):
                write(plain(piece))
            else:
                file = save(piece, out)
                write(f"\n{file}\n" if inside_line else f"{file}\n")
                picture(piece)
            inside_line = isinstance(piece, str)
    except (ValueError, OSError):
        if inside_line:
            write("\n")
        raise
    if inside_line:
        write("\n")


def say(console: Console, text: str) -> None:
    """A remark of ours; only on a terminal, so that a pipe carries the model's answers alone."""
    if console.is_terminal:
        console.print(plain(text), style="dim", markup=False, soft_wrap=True)
