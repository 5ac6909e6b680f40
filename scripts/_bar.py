"""The progress bar of drawing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def drawing_bar(total: int) -> Iterator[Callable[[float], None]]:
    """A bar of `total` images on standard error if that is a terminal. -> a function to say how many are done;
    fractions count the positions within a batch."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)
