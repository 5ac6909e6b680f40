"""Webdataset shards, read by number instead of as a stream: which sample comes when is a function of (seed, position),
so a run resumes by counting, whatever the number of ranks and workers.

A shard is a tar file in which the files of one sample share a key and follow each other: `000017.jpg 000017.txt`.
"""

import io
import random
import tarfile
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import fsspec
import numpy as np
from braceexpand import braceexpand

TOGETHER = 16  # shards whose samples are mixed: an epoch reads each shard in one stretch, not all of them all the time
Files = dict[str, tuple[int, int]]
"""Extension -> (offset, size) in the tar."""


def shard_urls(patterns: str | Sequence[str]) -> list[str]:
    """Paths, globs, brace ranges ("shards/{000..099}.tar") and whatever fsspec opens ("s3://..."), as single files.

    Raises ValueError naming a pattern that matches nothing.
    """
    urls = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in braceexpand(pattern):
            try:
                filesystem, path = fsspec.core.url_to_fs(name)
            except ImportError as error:  # "s3://..." without s3fs
                raise ValueError(f"cannot open {name}: {error}") from error
            found = sorted(filesystem.glob(path))
            if not found:
                raise ValueError(f"no shard at {name}")
            urls += [filesystem.unstrip_protocol(one) for one in found]
    return urls


class Shards:
    """All samples of some shards, by number, in the order of files.

    Opening reads every shard's headers once. A shard that is damaged or cut off counts up to the damage; `damages`
    says where. Raises ValueError when nothing is left.
    """

    def __init__(self, patterns: str | Sequence[str]):
        self.urls = shard_urls(patterns)
        self.damages: list[str] = []
        self.counts = [self._count(url) for url in self.urls]
        self.starts = [0, *accumulate(self.counts)]
        if not len(self):
            raise ValueError(f"no samples in {patterns}" + (f": {self.damages[0]}" if self.damages else ""))

    def _count(self, url: str) -> int:
        samples, damage = index_shard(url)
        if damage:
            self.damages.append(f"{url}: {damage}, after {len(samples)} samples")
        return len(samples)

    def __len__(self) -> int:
        return self.starts[-1]

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
def index_shard(url: str) -> tuple[list[tuple[str, Files]], str]:
    """-> (key, its files) of each sample, and what is wrong with the shard ("": nothing).

    The sample in which a shard breaks off is left out.
    """
    samples: list[tuple[str, Files]] = []
    try:
        with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            end = file.seek(0, io.SEEK_END)
            for member in tar:
                key, extension = _split(member.name)
                if not (member.isfile() and extension):
                    continue
                if not samples or samples[-1][0] != key:
                    samples.append((key, {}))
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError("it breaks off")
                samples[-1][1][extension] = (member.offset_data, member.size)
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any damaged header for the end
                raise tarfile.ReadError("it breaks off")
    except (OSError, tarfile.TarError) as error:
        return samples[:-1], f"cannot be read ({error})"
    return samples, ""


def _split(name: str) -> tuple[str, str]:
    """webdataset's rule: the key ends at the first dot of the file's own name. "" as extension of what is no part of a
    sample: names without a dot, and hidden files."""
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return folder + slash + key, extension.lower() if key else ""


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
