"""scripts.validate_data: numbers of good samples, names of bad ones, and the exit status that says which there are."""

from pathlib import Path

import pytest

from scripts.validate_data import main
from tests.shard_files import IMAGE, png, talk, text, write_shard
from training.data.validation import histogram


@pytest.fixture
def good() -> dict[str, dict[str, bytes]]:
    what = text("what is this?")
    return {
        "asked": talk([IMAGE, what], "a dog", png("red")),
        "drawn": talk("a dog", [IMAGE], png("red")),
        "edit": talk([IMAGE, text("turn it")], [IMAGE], png("red"), png("blue")),
    }


def test_good_shards(run, tiny_folder, good, tmp_path):
    shard = write_shard(tmp_path / "good.tar", good)
    ended = run(main, shard, "--model", tiny_folder, "--out", tmp_path)
    assert ended.status == 0, ended.err
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert "samples 3" in lines and "answers 3" in lines and "images 2 to read, 2 to draw" in lines
    assert "no problems" in lines and any(line.startswith("with loss ") for line in lines)
    page = (tmp_path / "preview.html").read_text()
    assert page.count("<section>") == 3 and page.count("<img class=loss ") == 2 and page.count("<img ") == 4
    assert "good.tar, edit" in page


def test_bad_samples_are_named_and_the_status_is_1(run, tiny_folder, good, tmp_path):
    good["long"] = talk("what is this? " * 40, "a dog")
    shard = write_shard(
        tmp_path / "bad.tar", {**good, "gone": {"json": good["asked"]["json"]}, "empty": {"json": b"{}"}}
    )
    (tmp_path / "cut.tar").write_bytes(Path(shard).read_bytes()[:700])
    ended = run(main, f"{tmp_path}/*.tar", "--model", tiny_folder, "--out", tmp_path, "--max-length", 100)
    assert ended.status == 1
    assert "bad.tar, gone: no 0.png, which its messages show" in ended.out
    assert "bad.tar, empty: no messages" in ended.out
    assert "bad.tar, long: " in ended.out and "tokens, more than max_length 100" in ended.out
    assert "cut.tar: " in ended.out and "after 0 samples" in ended.out
    assert "4 problems" in ended.out


def test_what_cannot_be_checked_is_one_line(refused, tiny_folder, tmp_path):
    assert "no shard at" in refused(main, tmp_path / "none.tar", "--model", tiny_folder, "--out", tmp_path)
    assert "unknown model" in refused(main, tmp_path / "none.tar", "--model", "nothing", "--out", tmp_path)
    assert "--model" in refused(main, tmp_path / "none.tar")


def test_a_histogram_counts_all():
    rows = [line.split() for line in histogram([3, 5, 5, 40, 99]).splitlines()]
    assert [int(row[-1]) for row in rows] == [3, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert rows[0][:3] == ["0", "to", "9"] and rows[-1][:3] == ["90", "to", "99"]
