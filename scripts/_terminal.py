"""A chat on a terminal, or over pipes."""

import sys
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from mllm.text.chat_session import ChatSession
from scripts._chat_lines import respond
from scripts._errors import one_line


def talk(chat: ChatSession, name: str, out: Path) -> None:
    """Read and answer until the user leaves. What goes wrong is told in one line, and the chat goes on."""
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    with suppress(AttributeError):  # of streams that are no files
        sys.stdin.reconfigure(errors="surrogateescape")  # one line in another encoding is refused, not all after it
    if sys.stdin.isatty():
        import readline  # noqa: F401  input() then edits lines and remembers them

        console.print(f"[bold]{name}[/bold]: ask, or /help", style="dim")
    while True:
        try:
            line = read_line()
            if line in (None, "/quit"):
                return
            if line:
                respond(chat, line, console, out)
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
