"""Several works that processes share: whoever ends last has the result."""

import json

import pytest

from eval.pieces import finish, work_json


@pytest.fixture
def process(tmp_path, monkeypatch):
    """process(rank, make): one of two processes that do two works of two pieces each."""
    monkeypatch.setenv("WORLD_SIZE", "2")

    def process(rank: int, make=lambda place: place):
        def both():
            monkeypatch.setenv("RANK", str(rank))
            works = [work_json(tmp_path / name, {"0.json": 0, "1.json": 1}, make, name) for name in ("one", "two")]
            return None if None in works else works

        return finish(both)

    return process


def test_the_last_process_has_the_result(process):
    assert process(1) is None
    assert process(0) == [[0, 1], [0, 1]]


def test_the_last_process_finds_what_was_ended_after_it_had_looked(process, tmp_path):
    ended = []

    def make(place):
        if (tmp_path / "one" / "1.json").is_file():  # rank 1 has left the first work, which rank 0 has not begun
            ended.append(process(0))
        return place

    assert process(1, make) == [[0, 1], [0, 1]]
    assert ended == [None]


def test_a_piece_is_made_once_and_whole(tmp_path):
    (tmp_path / "0.json").write_text(json.dumps("made before"))

    def fail(place):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work_json(tmp_path, {"0.json": 0, "1.json": 1}, fail, "")
    assert [file.name for file in tmp_path.iterdir()] == ["0.json"]
    assert work_json(tmp_path, {"0.json": 0, "1.json": 1}, str, "") == ["made before", "1"]
