"""scripts.make_shards: samples in, whole shards out; it resumes, and names what it leaves out."""

import json
from pathlib import Path

import pytest
from PIL import Image

from data_recipes.messages import READERS, from_files
from data_recipes.shards import Shards
from scripts.make_shards import main


@pytest.fixture
def chats(tmp_path) -> Path:
    """Ten chats about images; the image of the fifth is cut off."""
    rows = []
    for number in range(10):
        Image.effect_noise((32, 32), 90).save(tmp_path / f"{number}.jpg")
        asked = [{"type": "image", "image": f"{number}.jpg"}, {"type": "text", "text": "which?"}]
        rows.append({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": f"{number}"}]})
    (tmp_path / "4.jpg").write_bytes((tmp_path / "4.jpg").read_bytes()[:300])
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "chats.jsonl"


def answers(folder: Path) -> list[str]:
    shards = Shards(f"{folder}/*.tar")
    assert not shards.damages
    return [from_files(shards[index]).messages[1]["content"][0]["text"] for index in range(len(shards))]


def test_samples_become_shards_and_bad_ones_are_named(run, chats, tmp_path):
    out = tmp_path / "shards"
    ended = run(main, chats, out, "--format", "messages", "--per-shard", 4)
    assert ended.status == 0, ended.err
    assert "3 of 3 shards done, 1 samples left out, 9 taken" in ended.out
    assert "left out: " in ended.err and "chats.jsonl, line 5: cannot read 4.jpg as an image" in ended.err
    assert answers(out) == [str(number) for number in range(10) if number != 4]
    assert "line 5" in (out / "000001.problems.txt").read_text()


def test_finished_shards_are_kept_and_missing_ones_are_the_same(run, chats, tmp_path):
    out, command = tmp_path / "shards", (main, chats, tmp_path / "shards", "--format", "messages", "--per-shard", 4)
    run(*command)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    (out / "000001.tar").unlink()
    kept = (out / "000000.tar").stat().st_mtime_ns
    ended = run(*command)
    assert "3 of 3 shards done, 1 samples left out" in ended.out
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert (out / "000000.tar").stat().st_mtime_ns == kept


def test_too_many_bad_samples_end_it_without_the_shard(refused, run, chats, tmp_path):
    out = tmp_path / "shards"
    ended = run(main, chats, out, "--format", "messages", "--per-shard", 4, "--max-bad", 0)
    assert ended.status == 2 and "bad samples: 1, more than --max-bad 0 allows; the last: " in ended.err
    assert sorted(file.name for file in out.iterdir()) == ["000000.tar", "run.json"]
    assert run(main, chats, out, "--format", "messages", "--per-shard", 4).status == 0


def test_a_folder_holds_the_shards_of_one_input(refused, run, chats, tmp_path):
    run(main, chats, tmp_path / "shards", "--format", "messages")
    line = refused(main, chats, tmp_path / "shards", "--format", "messages", "--per-shard", 3)
    assert "per_shard was 1000, is 3" in line


def test_bad_words_are_one_line(refused, chats, tmp_path):
    known = ", ".join(READERS)
    assert f"--format tfds: unknown; known: {known}" in refused(main, chats, tmp_path / "out", "--format", "tfds")
    assert "--per-shard 0 is below 1" in refused(main, chats, tmp_path / "out", "--format", "llava", "--per-shard", 0)
    assert "no file" in refused(main, tmp_path / "gone.json", tmp_path / "out", "--format", "llava")
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "no samples in" in refused(main, tmp_path / "empty.jsonl", tmp_path / "out", "--format", "messages")


def test_a_folder_of_captions_says_where_they_come_from(run, tmp_path):
    folder = tmp_path / "photos [1]"
    (folder / "dogs").mkdir(parents=True)
    for name, caption in (("dogs/1.PNG", None), ("2.png", None), ("3.png", "café".encode("latin-1"))):
        Image.new("RGB", (20, 10), "red").save(folder / name)
        if caption:
            (folder / name).with_suffix(".txt").write_bytes(caption)
    lines = [{"file_name": "./2.png", "text": ["one", "one"]}, {"file_name": "4.png", "text": "gone"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\r\n" for line in lines))
    ended = run(main, folder, tmp_path / "shards", "--format", "captions", "--task", "describe")
    assert ended.status == 0 and "1 samples left out, 2 taken" in ended.out
    assert sorted(answers(tmp_path / "shards")) == ["a photo of dogs", "one"]
    assert "3 images; captions: 1 in metadata, 1 in .txt files, 1 by the folder's name" in ended.err
    assert "1 lines of metadata name no image that is there" in ended.err
    assert "3.txt is no text that can be read: it is not UTF-8 text (byte 0xe9 at 3); save it as UTF-8" in ended.err
