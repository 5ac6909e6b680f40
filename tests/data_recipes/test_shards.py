"""Webdataset shards by number: names, samples, damage, and an order that follows from (seed, position)."""

import io
import os
import tarfile

import pytest

from data_recipes.shards import TOGETHER, Shards, Shuffled, shard_urls
from tests.shard_files import write_tar


def numbered(*numbers: int) -> dict[str, bytes]:
    """Two files a sample, of 700 bytes, so that each has two blocks of the tar."""
    return {f"{n:03d}.{ending}": f"{ending} {n}".encode().ljust(700) for n in numbers for ending in ("jpg", "txt")}


def keys(shards: Shards) -> list[str]:
    return [shards.name(index).rpartition(", ")[2] for index in range(len(shards))]


# ---- names


def test_patterns_of_every_kind(tmp_path):
    for name in ("a-000.tar", "a-001.tar", "a-002.tar", "b.tar"):
        write_tar(tmp_path / name, numbered(1))

    def found(*patterns: str) -> list[str]:
        return [url.rpartition("/")[2] for url in shard_urls([f"{tmp_path}/{pattern}" for pattern in patterns])]

    assert found("b.tar") == ["b.tar"]
    assert found("a-*.tar") == ["a-000.tar", "a-001.tar", "a-002.tar"]
    assert found("a-{001..002}.tar") == ["a-001.tar", "a-002.tar"]
    assert found("b.tar", "a-{000,002}.tar") == ["b.tar", "a-000.tar", "a-002.tar"]
    assert len(shard_urls(f"file://{tmp_path}/a-*.tar")) == 3


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("{000..002}.tar", "no shard at .*001.tar"),
        ("*.tgz", "no shard at"),
        ("{000..002.tar", "Unbalanced braces"),
        ("strange://bucket/x.tar", "strange"),
    ],
)
def test_a_pattern_that_leads_nowhere_is_named(tmp_path, pattern, told):
    write_tar(tmp_path / "000.tar", numbered(1))
    with pytest.raises(ValueError, match=told):
        shard_urls(pattern if "://" in pattern else f"{tmp_path}/{pattern}")


def test_a_file_system_that_is_not_installed_is_told():
    with pytest.raises(ValueError, match="cannot open dropbox://x.tar: .*[Ii]nstall"):
        shard_urls("dropbox://x.tar")


def test_folders_with_pattern_characters_are_taken_as_they_are(tmp_path):
    for folder in ("x[1]", "x{a,b}", "x?", "x*", "plain"):
        for name in ("0.tar", "1.tar", "s[0].tar"):
            write_tar(tmp_path / folder / name, numbered(1))
        for pattern in ("0.tar", "?.tar", "{0..1}.tar", "s[0].tar", "s*.tar"):
            urls = shard_urls(f"{tmp_path}/{folder}/{pattern}")
            assert len(urls) == (2 if pattern in ("?.tar", "{0..1}.tar") else 1)
            assert all(url.startswith(f"file://{tmp_path}/{folder}/") for url in urls)
            assert urls == shard_urls(f"file://{tmp_path}/{folder}/{pattern}")
    assert len(shard_urls(f"{tmp_path}/x*/0.tar")) == 1  # there is a folder of this very name
    assert len(shard_urls(f"{tmp_path}/?[[]1]/0.tar")) == 1


def test_shards_joined_as_webdataset_joins_them(tmp_path):
    a, b = (str(write_tar(tmp_path / f"{name}.tar", numbered(place))) for place, name in enumerate("ab"))
    assert keys(Shards(f"{a}::{b}")) == ["000", "001"]
    assert keys(Shards(f"file://{b}::{tmp_path}/{{a,b}}.tar")) == ["001", "000", "001"]
    with pytest.raises(ValueError, match="no shard at .*gone.tar"):
        Shards(f"{a}::{tmp_path}/gone.tar")
    assert shard_urls(f"simplecache::file://{a}") and keys(Shards(f"simplecache::file://{a}")) == ["000"]


def test_a_name_that_would_be_read_as_two_is_refused(tmp_path):
    write_tar(tmp_path / "a::b.tar", numbered(1))
    with pytest.raises(ValueError, match="a::b.tar: rename it, '::' joins addresses"):
        shard_urls(f"{tmp_path}/*.tar")


# ---- samples


def test_samples_are_the_files_that_share_a_key(tmp_path):
    first = write_tar(tmp_path / "0.tar", numbered(0, 1, 2))
    second = write_tar(tmp_path / "1.tar", {"x.JPG": b"image", "x.seg.png": b"mask", "y.jpg": b"alone"})
    shards = Shards([str(first), str(second)])
    assert len(shards) == 5 and shards.counts == [3, 2] and shards.damages == []
    assert shards[1] == {"jpg": b"jpg 1".ljust(700), "txt": b"txt 1".ljust(700)}
    assert shards[3] == {"jpg": b"image", "seg.png": b"mask"}
    assert shards[4] == {"jpg": b"alone"}
    assert shards.name(3) == f"file://{second}, x"
    for outside in (-1, 5):
        with pytest.raises(IndexError):
            shards[outside]


def test_dots_in_folders_belong_to_the_key(tmp_path):
    files = {"v1.0/a.jpg": b"1", "v1.0/a.txt": b"2", "v2.0/a.jpg": b"3"}
    shards = Shards(str(write_tar(tmp_path / "v0.5" / "dots.tar", files)))
    assert keys(shards) == ["v1.0/a", "v2.0/a"]
    assert shards[0] == {"jpg": b"1", "txt": b"2"} and shards[1] == {"jpg": b"3"}


def test_what_is_no_part_of_a_sample_is_passed_over(tmp_path):
    """As webdataset does: folders, names without a dot, and the hidden files of macOS."""
    files = {"README": b"text", "._a.jpg": b"hidden", "a.jpg": b"1", "sub/._b.jpg": b"hidden", "a.txt": b"2"}
    file = write_tar(tmp_path / "0.tar", files)
    with tarfile.open(file, "a") as tar:
        folder = tarfile.TarInfo("b.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    shards = Shards(str(file))
    assert len(shards) == 1 and shards[0] == {"jpg": b"1", "txt": b"2"}


def test_hidden_folders_and_ways_to_write_names(tmp_path):
    files = {
        "./a.jpg": b"1", "a.TXT": b"2", ".ipynb_checkpoints/a-checkpoint.jpg": b"hidden", "__MACOSX/._a.jpg": b"hidden",
        "sub/e\u0301.jpg": b"3", "sub/\u00e9.txt": b"4",
    }  # fmt: skip
    shards = Shards(str(write_tar(tmp_path / "0.tar", files)))
    assert keys(shards) == ["a", "sub/é"] and shards.damages == []
    assert [shards[0], shards[1]] == [{"jpg": b"1", "txt": b"2"}, {"jpg": b"3", "txt": b"4"}]


def write_members(file, *names: str):
    """Files by name, which may come more than once; the content is the place."""
    with tarfile.open(file, "w") as tar:
        for place, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(str(place).encode()))
    return file


def test_a_key_that_comes_again_is_another_sample_and_told(tmp_path):
    side_by_side = Shards(str(write_members(tmp_path / "0.tar", "a.jpg", "a.txt", "a.jpg", "a.txt", "b.jpg")))
    assert [side_by_side[index] for index in range(3)] == [
        {"jpg": b"0", "txt": b"1"}, {"jpg": b"2", "txt": b"3"}, {"jpg": b"4"},
    ]  # fmt: skip
    apart = Shards(str(write_members(tmp_path / "1.tar", "a.jpg", "b.jpg", "a.jpg", "b.jpg")))
    assert [apart[index] for index in range(4)] == [{"jpg": str(place).encode()} for place in range(4)]
    told = "keys come more than once, e.g. a: each time is taken as a sample of its own"
    assert side_by_side.damages == [f"file://{tmp_path}/0.tar: 1 {told}"]
    assert apart.damages == [f"file://{tmp_path}/1.tar: 2 {told}"]


def test_links_inside_a_shard_are_told(tmp_path):
    file = write_tar(tmp_path / "0.tar", numbered(0))
    with tarfile.open(file, "a") as tar:
        link = tarfile.TarInfo("001.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "000.jpg"
        tar.addfile(link)
    shards = Shards(str(file))
    assert keys(shards) == ["000"] and len(shards.damages) == 1 and "001.jpg is a link" in shards.damages[0]


def test_shards_say_how_many_samples_they_have(tmp_path):
    file = write_tar(tmp_path / "0.tar", numbered(0, 1))
    assert Shards(str(file)).taken() == f"2 samples in 1 shards, the first file://{file}"


# ---- damage


@pytest.mark.parametrize(
    ("length", "where"),
    [
        (6 * 1536 - 1000, "in the data of the last file"),
        (6 * 1536 - 200, "in the padding behind it"),
        (5 * 1536 + 100, "in its header"),
        (5 * 1536, "between the two files of the last sample"),
    ],
)
def test_the_sample_in_which_a_shard_breaks_off_is_left_out(tmp_path, length, where):
    file = write_tar(tmp_path / "0.tar", numbered(0, 1, 2))
    os.truncate(file, length)
    shards = Shards(str(file))
    assert keys(shards) == ["000", "001"], where
    assert len(shards.damages) == 1 and str(file) in shards.damages[0] and "after 2 samples" in shards.damages[0]
    assert shards[1]["txt"] == b"txt 1".ljust(700)


def test_a_damaged_header_ends_a_shard_and_is_told(tmp_path):
    """tarfile takes it for the end of the archive."""
    file = write_tar(tmp_path / "0.tar", numbered(0, 1, 2, 3))
    with open(file, "r+b") as content:
        content.seek(5 * 1536)
        content.write(b"damage" * 80)
    shards = Shards(str(file))
    assert keys(shards) == ["000", "001"] and len(shards.damages) == 1


def test_other_shards_stand_in_for_a_damaged_one(tmp_path):
    good = write_tar(tmp_path / "good.tar", numbered(0, 1))
    for name, content in (("text", b"no tar" * 500), ("empty", b"")):
        (tmp_path / f"{name}.tar").write_bytes(content)
    shards = Shards([f"{tmp_path}/text.tar", str(good), f"{tmp_path}/empty.tar"])
    assert shards.counts == [0, 2, 0] and keys(shards) == ["000", "001"] and len(shards.damages) == 2
    with pytest.raises(ValueError, match="no samples in .*text.tar.*cannot be read"):
        Shards(f"{tmp_path}/text.tar")


def test_a_compressed_tar_is_not_read_at_wrong_places(tmp_path):
    plain = write_tar(tmp_path / "plain.tar", numbered(0, 1))
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(plain, "000.jpg")
    with pytest.raises(ValueError, match="no samples in .*packed.tar"):
        Shards(f"{tmp_path}/packed.tar")


def test_a_shard_that_goes_away_is_named(tmp_path):
    file = write_tar(tmp_path / "0.tar", numbered(0, 1))
    shards = Shards(str(file))
    os.truncate(file, 2000)
    with pytest.raises(ValueError, match="cannot read .*0.tar, 001: the shard has become shorter"):
        shards[1]
    file.unlink()
    with pytest.raises(ValueError, match="cannot read .*0.tar, 000"):
        shards[0]


def test_checksums_change_with_the_shard(tmp_path):
    file = write_tar(tmp_path / "0.tar", numbered(0, 1))
    before = Shards(str(file)).checksums()
    assert before == Shards(str(file)).checksums()
    write_tar(file, numbered(0, 1, 2))
    after = Shards(str(file)).checksums()
    assert before != after and before[0][0] == after[0][0] == f"file://{file}"


# ---- order

COUNTS = [3, 0, 1, 40, *[5] * (2 * TOGETHER)]


def test_each_sample_once_an_epoch():
    order, total = Shuffled(COUNTS, seed=0), sum(COUNTS)
    epochs = [[order[epoch * total + place] for place in range(total)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(total)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != sorted(epochs[0])


def test_the_order_follows_from_seed_and_position():
    order, positions = Shuffled(COUNTS, seed=3), [400, 7, 0, 100_000, 7]
    once = [order[position] for position in positions]
    assert [Shuffled(COUNTS, seed=3)[position] for position in reversed(positions)] == once[::-1]
    first = [order[position] for position in range(50)]
    assert first != [Shuffled(COUNTS, seed=4)[position] for position in range(50)]


def test_shards_are_read_in_stretches():
    """No more than `TOGETHER` of them are open at a time, and their samples are mixed."""
    counts = [10] * (3 * TOGETHER)
    order = Shuffled(counts, seed=0)
    stretch = [order[place] // 10 for place in range(10 * TOGETHER)]
    assert len(set(stretch)) == TOGETHER
    assert len(set(stretch[:TOGETHER])) > TOGETHER // 2
