"""Webdataset shards, read by number instead of as a stream: which sample comes when is a function of (seed, position),
so a run resumes by counting, whatever the number of ranks and workers.

A shard is a tar file in which the files of one sample share a key and follow each other: `000017.jpg 000017.txt`.
"""

import glob
import io
import random
import tarfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import fsspec
import numpy as np
from braceexpand import braceexpand

from .files import plain_name

TOGETHER = 16  # shards whose samples are mixed: an epoch reads each shard in one stretch, not all of them all the time
LAYERS = ("simplecache", "filecache", "blockcache", "cached", "zip", "tar", "libarchive", "dir", "reference")
Files = dict[str, tuple[int, int]]
"""Extension -> (offset, size) in the tar."""


def shard_urls(patterns: str | Sequence[str]) -> list[str]:
    """Paths, globs, brace ranges ("shards/{000..099}.tar") and whatever fsspec opens ("s3://..."), as single files;
    several in one as webdataset joins them ("a.tar::b.tar"). Folders and files that are there are taken as they are
    written, whatever pattern characters they hold.

    Raises ValueError naming a pattern that matches nothing.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return [url for joined in patterns for pattern in _parts(joined) for url in _matching(pattern)]


def _parts(joined: str) -> list[str]:
    """ "::" joins shards, but where the first word is one of fsspec's layers over an address ("simplecache::s3://...")."""
    first = joined.partition("::")[0].partition("://")[0]
    return [joined] if first in LAYERS else joined.split("::")


def _matching(pattern: str) -> list[str]:
    folder, rest = _existing_folder(pattern)
    urls = []
    for name in braceexpand(rest) if rest else [""]:
        try:
            filesystem, path = fsspec.core.url_to_fs(glob.escape(folder) + name)
        except (ImportError, ValueError) as error:  # "s3://..." without s3fs, or no such protocol
            raise ValueError(f"cannot open {folder}{name}: {error}") from error
        found = sorted(filesystem.unstrip_protocol(one) for one in filesystem.glob(path))
        if not found:
            raise ValueError(f"no shard at {folder}{name}")
        unreadable = [url for url in found if "::" in url and "::" not in name]
        if unreadable:
            raise ValueError(f"{unreadable[0]}: rename it, '::' joins addresses")
        urls += found
    return urls


def _existing_folder(pattern: str) -> tuple[str, str]:
    """A local pattern's longest beginning that is there as it is written, and the rest; of addresses, nothing."""
    local = pattern.removeprefix("file://")
    if "://" in local or _parts(local) != [local]:
        return "", pattern
    if Path(local).is_file():
        return local, ""
    folder = next((parent for parent in Path(local).parents if parent.is_dir()), Path("."))
    return f"{folder}/", str(Path(local).relative_to(folder))


class Shards:
    """All samples of some shards, by number, in the order of files.

    Opening reads every shard's headers once. A shard that is damaged or cut off counts up to the damage; `damages`
    says where, and which keys come more than once. Raises ValueError when nothing is left.
    """

    def __init__(self, patterns: str | Sequence[str]):
        self.urls = shard_urls(patterns)
        self.damages: list[str] = []
        self.counts = [self._count(url) for url in self.urls]
        self.starts = [0, *accumulate(self.counts)]
        if not len(self):
            raise ValueError(f"no samples in {patterns}" + (f": {self.damages[0]}" if self.damages else ""))

    def _count(self, url: str) -> int:
        samples, problems = index_shard(url)
        self.damages += [f"{url}: {problem}" for problem in problems]
        return len(samples)

    def __len__(self) -> int:
        return self.starts[-1]

    def taken(self) -> str:
        """How many samples there are."""
        return f"{len(self)} samples in {len(self.urls)} shards, the first {self.urls[0]}"

    def checksums(self) -> list[tuple[str, str]]:
        """(shard, what changes with its content), for each."""
        places = [(url, *fsspec.core.url_to_fs(url)) for url in self.urls]
        return [(url, str(filesystem.checksum(path))) for url, filesystem, path in places]

    def name(self, index: int) -> str:
        """Shard and key, for messages."""
        url, key, _ = self._find(index)
        return f"{url}, {key}"

    def __getitem__(self, index: int) -> dict[str, bytes]:
        """The files of a sample by extension. Raises ValueError when they are not there any more."""
        url, key, files = self._find(index)
        try:
            with fsspec.open(url, "rb") as shard:
                return {extension: _read(shard, *place) for extension, place in files.items()}
        except (OSError, EOFError) as error:
            raise ValueError(f"cannot read {url}, {key}: {error}") from error

    def _find(self, index: int) -> tuple[str, str, Files]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = bisect_right(self.starts, index) - 1
        key, files = index_shard(self.urls[shard])[0][index - self.starts[shard]]
        return self.urls[shard], key, files


def _read(shard, offset: int, size: int) -> bytes:
    shard.seek(offset)
    data = shard.read(size)
    if len(data) != size:
        raise EOFError("the shard has become shorter")
    return data


@lru_cache(maxsize=4 * TOGETHER)
def index_shard(url: str) -> tuple[list[tuple[str, Files]], list[str]]:
    """-> (key, its files) of each sample, and what is wrong with the shard.

    The sample in which a shard breaks off is left out. A file that comes again begins another sample.
    """
    samples: list[tuple[str, Files]] = []
    problems: list[str] = []
    try:
        with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            end = file.seek(0, io.SEEK_END)
            for member in tar:
                key, extension = _split(member.name)
                if member.isdir() or not extension:
                    continue
                if not member.isfile() or member.issparse():
                    problems.append(f"{member.name} is a link, or has holes: make the tar with its content")
                    continue
                if not samples or samples[-1][0] != key or extension in samples[-1][1]:
                    samples.append((key, {}))
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError("it breaks off")
                samples[-1][1][extension] = (member.offset_data, member.size)
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any damaged header for the end
                raise tarfile.ReadError("it breaks off")
    except (OSError, tarfile.TarError) as error:
        samples = samples[:-1]
        problems.append(f"cannot be read ({error}), after {len(samples)} samples")
    repeated = [key for key, times in Counter(key for key, _ in samples).items() if times > 1]
    if repeated:
        told = f"{len(repeated)} keys come more than once, e.g. {repeated[0]}"
        problems.append(f"{told}: each time is taken as a sample of its own")
    return samples, problems


def _split(name: str) -> tuple[str, str]:
    """webdataset's rule: the key ends at the first dot of the file's own name. "" as extension of what is no part of a
    sample: names without a dot, and hidden files and folders."""
    *folders, file = plain_name(name).split("/")
    key, _, extension = file.partition(".")
    hidden = any(part.startswith(".") and part != ".." for part in [*folders, file])
    return "/".join([*folders, key]), "" if hidden else extension.lower()


class Shuffled:
    """Position in an endless run -> index of a sample: all once an epoch, each epoch in an order of its own.

    `counts` are the samples of each shard. Shards come in random groups, and the samples of a group are mixed.
    """

    def __init__(self, counts: Sequence[int], seed: int):
        self.counts, self.seed = list(counts), seed
        self.starts = [0, *accumulate(self.counts)]
        self._epoch, self._group = lru_cache(maxsize=2)(self._epoch), lru_cache(maxsize=4)(self._group)

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.starts[-1])
        _, begins = self._epoch(epoch)
        group = bisect_right(begins, place) - 1
        return int(self._group(epoch, group)[place - begins[group]])

    def _epoch(self, epoch: int) -> tuple[list[list[int]], list[int]]:
        """Groups of shards, and the place at which each begins."""
        shards = [shard for shard, count in enumerate(self.counts) if count]
        random.Random(f"{self.seed} {epoch}").shuffle(shards)
        groups = [shards[first : first + TOGETHER] for first in range(0, len(shards), TOGETHER)]
        sizes = [sum(self.counts[shard] for shard in group) for group in groups]
        return groups, [0, *accumulate(sizes[:-1])]

    def _group(self, epoch: int, group: int) -> np.ndarray:
        shards = self._epoch(epoch)[0][group]
        indices = np.concatenate([np.arange(self.starts[shard], self.starts[shard + 1]) for shard in shards])
        return np.random.default_rng([self.seed, epoch, group]).permutation(indices)
