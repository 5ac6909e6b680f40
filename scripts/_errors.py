"""How a command ends: well, with a line on what was wrong (status 2), or stopped: by Ctrl-C (130) or SIGTERM (143)."""

import atexit
import gc
import os
import signal
import sys
import unicodedata
import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


def cli(main: Callable[..., int | None], *args: Any) -> NoReturn:
    """Run `main(*args)` and leave with its status; what users can cause is told in one line, and so are warnings."""
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"
    signal.signal(signal.SIGTERM, _stop)
    atexit.register(gc.freeze)  # or leaving would go through all that was imported, which takes a second
    try:
        status = main(*args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has left, as in `... | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except (ValueError, OSError, ModuleNotFoundError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and type(error).__name__ != "OutOfMemoryError":  # torch's, of a GPU
            raise
        sys.stderr.write(f"error: {one_line(error)}\n")  # at once: ranks share a terminal
        status = 2
    except KeyboardInterrupt as stop:
        print("stopped", file=sys.stderr)
        status = 128 + (*stop.args, signal.SIGINT)[0]
    sys.exit(status)


def _stop(number: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt(number)  # as Ctrl-C does: a file that is being written goes away


def one_line(error: Exception) -> str:
    """An error's message without line breaks; for errors of the system or of an import, what it was about."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name.partition('.')[0]} is not installed: `make dev` installs what all commands need"
    told = f"{error.filename}: {error.strerror}" if getattr(error, "strerror", "") and error.filename else str(error)
    return plain(" ".join(told.split())) or type(error).__name__


def plain(text: str) -> str:
    """Without what a terminal would obey: names of files, and what a model says, may hold any bytes."""
    return "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs"))


class Parser(ArgumentParser):
    """argparse with a script's docstring as help, and errors like all others: one line, no usage above it."""

    def __init__(self, doc: str, prog: str | None = None):
        super().__init__(prog, description=doc, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see --help)")


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Ctrl-C inside ends the process there and then. For imports and loading, which write nothing and where libraries
    may lose a KeyboardInterrupt. Python's garbage collector pauses: it takes a quarter of the time of importing."""

    def stop(*_: Any) -> None:
        os.write(2, b"stopped\n")
        os._exit(130)

    before, restore = signal.signal(signal.SIGINT, stop), gc.enable if gc.isenabled() else gc.disable
    gc.disable()
    try:
        yield
    finally:
        restore()
        signal.signal(signal.SIGINT, before)
