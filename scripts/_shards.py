"""Writing folders of shards: whole or not at all, with what is left out named beside them.

What is wrong with samples of `000003.tar` is in `000003.problems.txt`, a line each, so that a resumed run and the other
processes of torchrun count it, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from webdataset.writer import TarWriter

from data_recipes.files import read_lines, whole, write_whole
from data_recipes.shards import index_shard
from eval.pieces import share, watch

NOTES = ".problems.txt"
Samples = Iterable[tuple[str, dict[str, bytes]] | str]
"""Of a shard: (key, its files); or a text: what is wrong with one that is left out."""


def write_shards(folder: Path, names: Sequence[str], samples: Callable[[int], Samples], max_bad: int) -> str:
    """Those of this process that are not there yet. -> what there is now. Raises ValueError at more than `max_bad`
    samples in the folder that are left out."""
    missing = [place for place in share(range(len(names))) if not (folder / names[place]).is_file()]
    for place in watch(missing, "shards"):
        write_shard(folder / names[place], samples(place), max_bad)
    done = [folder / name for name in names if (folder / name).is_file()]
    taken = sum(len(index_shard(f"file://{file.resolve()}")[0]) for file in done)
    left_out = f"{len(problems(folder))} samples left out, {taken} taken"
    return f"{folder}: {len(done)} of {len(names)} shards done, {left_out}"


def write_shard(file: Path, samples: Samples, max_bad: int) -> None:
    notes, bad = file.with_suffix(NOTES), []
    notes.unlink(missing_ok=True)  # of a run that was killed before it had the shard
    before = len(problems(file.parent))
    with whole(file) as part:
        # mtime: the same input gives the same bytes
        with part.open("wb") as stream, TarWriter(stream, encoder=False, mtime=0) as tar:
            for sample in samples:
                if isinstance(sample, str):
                    bad.append(" ".join(sample.split()))  # names of files may hold ends of lines
                    print(f"left out: {bad[-1]}", file=sys.stderr)
                    check_bad(before + len(bad), max_bad, bad[-1])
                else:
                    tar.write({"__key__": sample[0], **sample[1]})
        if bad:
            write_whole(notes, "".join(f"{problem}\n" for problem in bad))


def check_bad(count: int, max_bad: int, problem: str) -> None:
    """Raises ValueError when there are too many."""
    if count > max_bad:
        raise ValueError(f"bad samples: {count}, more than --max-bad {max_bad} allows; the last: {problem}")


def problems(folder: Path) -> list[str]:
    """All that the notes in a folder say."""
    return [line for file in sorted(folder.glob(f"*{NOTES}")) for line in read_lines(file)]
