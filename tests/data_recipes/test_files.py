"""Texts in the encodings, and files under the names and in the folders, that people have."""

import os
import unicodedata

import pytest

from data_recipes.files import (
    decode,
    find_file,
    plain_name,
    read_lines,
    read_text,
    split_lines,
    walk,
    whole,
    write_json,
    write_whole,
)

WORDS = "é\u2028ü\x85 – 猫"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_with_a_mark_are_read(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes(WORDS.encode(encoding))
    assert read_text(tmp_path / "a.txt") == WORDS


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("café".encode("latin-1"), "is not UTF-8 text .byte 0xe9 at 3.; save it as UTF-8"),
        ("hello".encode("utf-16-le"), "holds zero bytes"),
        ("hello".encode("utf-16")[:-1], "is not UTF-16 text"),
        (b"\xef\xbb\xbf", "is not UTF-8 text, but a byte order mark alone"),
        (b"\x89PNG\r\n", "is not UTF-8 text"),
    ],
)
def test_other_encodings_are_named(content, told):
    with pytest.raises(ValueError, match=f"^a.txt is no text that can be read: it {told}"):
        decode(content, "a.txt")


def test_lines_end_at_line_feeds_alone(tmp_path):
    (tmp_path / "a.txt").write_bytes(f"one\r\n{WORDS}\n\n\x0bfour\x1c\r\n".encode())
    assert read_lines(tmp_path / "a.txt") == ["one", WORDS, "", "\x0bfour\x1c"]
    assert split_lines("") == [] and split_lines("\n") == [""] and split_lines("a") == ["a"]


def test_names_have_one_plain_form():
    assert {plain_name(name) for name in ("./a/b.png", "a\\b.png", "a//b.png", "a/./c/../b.png")} == {"a/b.png"}
    assert plain_name(unicodedata.normalize("NFD", "é.png")) == unicodedata.normalize("NFC", "é.png")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_files_are_found_by_any_form_of_their_names(tmp_path, form):
    folder = tmp_path / unicodedata.normalize(form, "fotós")
    folder.mkdir()
    file = folder / unicodedata.normalize(form, "é.png")
    file.touch()
    for name in ("fotós/é.png", "./fotós/é.png", "fotós\\é.png"):
        for other in ("NFC", "NFD"):
            assert find_file(tmp_path, unicodedata.normalize(other, name)) == file
    assert find_file(tmp_path, "fotós/e.png") is None and find_file(tmp_path, "fotós") is None


def test_hidden_ones_are_passed_over_and_links_are_followed_once(tmp_path):
    root = tmp_path / "root"
    for name in ("a/1.png", "b[1]/2.PNG", ".ipynb_checkpoints/3.png", "a/.cache/4.png", "a/._1.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "5.png").touch()
    os.symlink(tmp_path / "elsewhere", root / "linked")
    os.symlink(root, root / "a" / "loop")
    os.symlink(root / "b[1]", root / "a" / "again")
    os.symlink(tmp_path / "nowhere", root / "broken.png")
    files, repeated = walk(root)
    names = [file.relative_to(root).as_posix() for file in files]
    assert names == ["a/1.png", "b[1]/2.PNG", "broken.png", "linked/5.png"]
    assert sorted(line.split(" ")[0] for line in repeated) == [f"{root}/a/again", f"{root}/a/loop"]


def test_a_hidden_folder_can_be_given_itself(tmp_path):
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "1.png").touch()
    assert walk(tmp_path / ".data")[0] == [tmp_path / ".data" / "1.png"]


# ---- writing


def test_a_file_or_folder_is_whole_or_not_there(tmp_path):
    write_whole(tmp_path / "new" / "page.html", "old")
    for path, fill in (("page.html", lambda part: part.write_text("n")), ("model", lambda part: part.mkdir())):
        with pytest.raises(KeyboardInterrupt), whole(tmp_path / "new" / path) as part:
            fill(part)
            raise KeyboardInterrupt
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["page.html"]
    assert (tmp_path / "new" / "page.html").read_text() == "old"
    with whole(tmp_path / "model") as part:
        part.mkdir()
        write_json(part / "config.json", {"size": 1})
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "config.json").read_text() == '{\n  "size": 1\n}\n'
