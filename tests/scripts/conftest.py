"""Running a script's main inside the tests' process, as its command line would."""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from scripts._errors import cli


class Ended(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys) -> Callable[..., Ended]:
    """run(main, "--model", folder, ...) -> status, standard output, standard error."""

    def run_main(main: Callable, *words: object) -> Ended:
        with pytest.raises(SystemExit) as leave:
            cli(main, [str(word) for word in words])
        return Ended(leave.value.code or 0, *capsys.readouterr())

    return run_main


@pytest.fixture
def refused(run) -> Callable[..., str]:
    """Runs what must end with status 2, nothing on standard output and one line on the other: that line."""

    def run_refused(main: Callable, *words: object) -> str:
        ended = run(main, *words)
        assert ended.status == 2
        assert ended.out == ""
        assert ended.err.startswith("error: ") and ended.err.count("\n") == 1
        return ended.err

    return run_refused
