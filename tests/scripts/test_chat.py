"""scripts.chat: one question, a conversation, and images of every kind."""

import fcntl
import io
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm import DrawingOptions
from mllm.text import chat_session
from mllm.text.chat_session import add_piece
from scripts import chat
from scripts._chat_lines import show
from scripts.chat import main

ROOT = Path(__file__).parents[2]
WAIT = 120  # seconds, for machines under load


@pytest.fixture
def spoken(monkeypatch):
    """Replaces the model's answers by a list to fill; -> (answers to give, chats it was asked)."""
    answers, asked = [], []

    def generate_text(model, processor, messages, **options):
        asked.append((messages, options))
        yield from answers.pop(0)

    monkeypatch.setattr(chat_session, "generate_text", generate_text)
    return answers, asked


@pytest.fixture
def piped(monkeypatch):
    """Sets what standard input holds."""
    return lambda *lines: monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{x}\n" for x in lines)))


@pytest.fixture
def picture(tmp_path):
    """Four coloured quarters, 64 x 64."""
    quarters = np.zeros((64, 64, 3), np.uint8)
    quarters[:32, :32], quarters[:32, 32:] = (255, 0, 0), (0, 255, 0)
    quarters[32:, :32], quarters[32:, 32:] = (0, 0, 255), (255, 255, 255)
    file = tmp_path / "picture.png"
    Image.fromarray(quarters).save(file)
    return file


# ---- one question


def test_output_is_the_answer_alone(run, tiny_folder, picture):
    words = ("--model", tiny_folder, "--image", picture, "--prompt", "what is this?", "--max-new-tokens", 4)
    first = run(main, *words, "--temperature", 1, "--seed", 3)
    assert first.status == 0 and first.err == ""
    assert first == run(main, *words, "--temperature", 1, "--seed", 3)
    assert first != run(main, *words, "--temperature", 1, "--seed", 4)


def test_answer_ends_its_line(run, tiny_folder, spoken):
    spoken[0].append(["a ", "cat"])
    assert run(main, "--model", tiny_folder, "--prompt", "hello").out == "a cat\n"


def test_options_reach_the_model(run, tiny_folder, spoken, picture):
    spoken[0].append(["yes"])
    options = ("--temperature", 0.5, "--top-p", 0.9, "--max-new-tokens", 7, "--seed", 5, "--cfg-scale", 2)
    run(main, "--model", tiny_folder, "--image", picture, picture, "--prompt", " hello ", *options)
    [([message], given)] = spoken[1]
    assert [part["type"] for part in message["content"]] == ["image", "image", "text"]
    assert message["content"][-1]["text"] == "hello"
    assert given == {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_new_tokens": 7,
        "seed": 5,
        "drawing": DrawingOptions(cfg_scale=2.0, cfg_interval=(0.0, 1.0), candidates=1),
    }


def test_a_drawn_image_is_saved_and_named(run, tiny_folder, spoken, tmp_path):
    images = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    spoken[0].append(["here:", images[0], images[1], "done"])
    ended = run(main, "--model", tiny_folder, "--prompt", "draw", "--out", tmp_path / "new")
    files = [tmp_path / "new" / name for name in ("0001.png", "0002.png")]
    assert ended.out == f"here:\n{files[0]}\n{files[1]}\ndone\n"
    assert [Image.open(file).getpixel((0, 0)) for file in files] == [(255, 0, 0), (0, 0, 255)]


def test_show_without_an_answer_writes_nothing(tmp_path):
    written = []
    show(iter([]), written.append, tmp_path)
    assert written == []


def test_text_in_a_row_is_one_part():
    content = []
    for piece in ("a", " cat", image := Image.new("RGB", (4, 4)), "and", " more"):
        add_piece(content, piece)
    assert content == [
        {"type": "text", "text": "a cat"},
        {"type": "image", "image": image},
        {"type": "text", "text": "and more"},
    ]


# ---- a conversation


def test_a_chat_remembers(run, tiny_folder, spoken, piped, picture):
    answers, asked = spoken
    answers += [["a cat"], ["red"], ["hello"]]
    piped(f"/image '{picture}'", "what is this?", "", "what color is it?", "/clear", "hi", "/quit", "never")
    ended = run(main, "--model", tiny_folder)
    assert (ended.out, ended.err) == ("a cat\nred\nhello\n", "")
    first, second, third = (messages for messages, _ in asked)
    assert [part["type"] for part in first[0]["content"]] == ["image", "text"]
    assert second[:2] == [
        first[0],
        {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
    ]
    assert second[2]["content"] == [{"type": "text", "text": "what color is it?"}]
    assert [message["content"] for message in third] == [[{"type": "text", "text": "hi"}]]
    assert [options["seed"] for _, options in asked] == [0, 1, 0]


def test_a_chat_with_the_real_model(run, tiny_folder, piped, picture, tmp_path):
    piped("hello", f"/image {picture}", "what is this?", "/draw a photo of a cat", "what is this?")
    ended = run(main, "--model", tiny_folder, "--max-new-tokens", 2, "--out", tmp_path / "out")
    assert ended.status == 0
    assert str(tmp_path / "out" / "0001.png") in ended.out.replace("\n", "")
    assert Image.open(tmp_path / "out" / "0001.png").copy().size == (32, 32)


def test_drawings_can_be_talked_about_and_are_never_overwritten(run, tiny_folder, spoken, piped, tmp_path):
    spoken[0].append(["a cat"])
    (tmp_path / "0001.png").write_text("of the user")
    piped("/draw a cat", "/draw a cat", "what are these?")
    ended = run(main, "--model", tiny_folder, "--out", tmp_path)
    files = [tmp_path / name for name in ("0002.png", "0003.png")]
    assert ended.out == f"{files[0]}\n{files[1]}\na cat\n"
    assert (tmp_path / "0001.png").read_text() == "of the user"
    shown = [part["image"] for part in spoken[1][0][0][0]["content"] if part["type"] == "image"]
    assert [image.tobytes() for image in shown] == [Image.open(file).tobytes() for file in files]
    assert shown[0].tobytes() != shown[1].tobytes()  # each drawing has a seed of its own


def test_mistakes_do_not_end_a_chat(run, tiny_folder, spoken, piped, tmp_path):
    spoken[0].append(["still here"])
    piped("/image", "/image no.png", "/draw", "/dance", "hello")
    ended = run(main, "--model", tiny_folder, "--out", tmp_path)
    assert (ended.status, ended.out) == (0, "still here\n")
    assert ended.err.splitlines() == [
        "error: /image needs a file: /image cat.png",
        "error: no image file at no.png",
        "error: empty prompt: say what to draw",
        "error: unknown command '/dance'; known: /image, /draw, /clear, /help, /quit",
    ]


def test_a_question_that_fails_leaves_no_trace(run, tiny_folder, piped):
    piped("x" * 2000, "/help")
    ended = run(main, "--model", tiny_folder)
    assert ended.err.startswith("error: ") and "the model reads 256" in ended.err
    assert ended.err.count("\n") == 1
    assert all(command in ended.out for command in ("/image", "/draw", "/clear", "/help", "/quit"))


def test_drawing_where_nothing_can_be_written_is_told_first(run, tiny_folder, piped, monkeypatch, tmp_path):
    monkeypatch.setattr(chat_session, "generate_images", None)  # would fail if anything were drawn
    (tmp_path / "file").write_text("x")
    piped("/draw a cat")
    ended = run(main, "--model", tiny_folder, "--out", tmp_path / "file")
    assert "choose another --out" in ended.err


def test_a_terminal_is_prompted_until_it_ends(run, tiny_folder, spoken, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    lines = iter([" hello ", ""])

    def read(prompt):
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", read)
    spoken[0].append(["hi"])
    ended = run(main, "--model", tiny_folder)
    assert ended.status == 0 and "/help" in ended.out and ended.out.endswith("hi\n\n")


def test_ctrl_c_in_a_chat(run, tiny_folder, piped, monkeypatch):
    def generate_text(*_, **__):
        yield "a c"
        raise KeyboardInterrupt

    monkeypatch.setattr(chat_session, "generate_text", generate_text)
    piped("hello")
    assert run(main, "--model", tiny_folder) == (130, "a c", "stopped\n")


def test_what_is_no_image_is_one_line_and_the_chat_goes_on(run, tiny_folder, spoken, piped, tmp_path):
    spoken[0].append(["still here"])
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    names = [
        "~nobody_of_this_name/x.png",
        tmp_path / "folder",
        tmp_path / "pipe",
        "a\0b.png",
        "\x1b[2Jx.png",
        "x" * 300,
    ]
    piped(*(f"/image {name}" for name in names), "/im\x1b[2Jage", "hello")
    ended = run(main, "--model", tiny_folder)
    assert (ended.status, ended.out) == (0, "still here\n")
    errors = ended.err.splitlines()
    assert len(errors) == len(names) + 1 and all(line.startswith("error: ") and line.isprintable() for line in errors)
    assert "nobody here is called 'nobody_of_this_name'" in errors[0] and "is a folder" in errors[1]


def test_a_home_folder_of_nobody_is_refused_before_loading_a_model(refused, monkeypatch):
    monkeypatch.setattr(chat, "load_model", None)
    assert "~nobody_of_this_name" in refused(main, "--image", "~nobody_of_this_name/x.png", "--prompt", "?")


def test_a_terminal_is_not_told_to_do_things(run, tiny_folder, spoken, piped):
    spoken[0].extend([["a\x1b]0;title\x07 \x1b[31mcat\tand\nmore\x9b"]] * 2)
    assert run(main, "--model", tiny_folder, "--prompt", "hello").out == "a]0;title [31mcat\tand\nmore\n"
    piped("hello")
    assert run(main, "--model", tiny_folder).out.startswith("a]0;title [31mcat")


def test_an_answer_that_breaks_off_ends_its_line(run, tiny_folder, piped, monkeypatch):
    def generate_text(*_, **__):
        yield "a c"
        raise ValueError("it broke")

    monkeypatch.setattr(chat_session, "generate_text", generate_text)
    piped("hello", "/quit")
    assert run(main, "--model", tiny_folder) == (0, "a c\n", "error: it broke\n")


def _shell(tiny_folder, words: str, given: bytes = b"") -> subprocess.CompletedProcess:
    command = f"exec {sys.executable} -m scripts.chat --model {tiny_folder} {words}"
    env = {**os.environ, "PYTHONUTF8": "1"}
    return subprocess.run(["sh", "-c", command], input=given, capture_output=True, cwd=ROOT, env=env, timeout=WAIT)


def test_closed_streams_are_one_line(tiny_folder):
    for words, told in [("<&-", b"standard input is closed"), ("--prompt hi >&-", b"standard output is closed")]:
        ended = _shell(tiny_folder, words)
        assert ended.returncode == 2 and ended.stderr.startswith(b"error: ") and ended.stderr.count(b"\n") == 1
        assert told in ended.stderr and not ended.stdout
    assert _shell(tiny_folder, "--prompt hi --max-new-tokens 1 <&-").returncode == 0


def test_a_line_in_another_encoding_is_refused_alone(tiny_folder):
    ended = _shell(tiny_folder, "--max-new-tokens 1", b"caf\xe9\n/help\nhello\n")
    assert ended.returncode == 0 and b"/draw PROMPT" in ended.stdout
    [line] = [line for line in ended.stderr.splitlines() if b"Warning" not in line and not line.startswith(b" ")]
    assert line == b"error: text with characters that are no Unicode, at position 3: use UTF-8"


def test_sigterm_is_one_line(tiny_folder):
    command = [sys.executable, "-m", "scripts.chat", "--model", str(tiny_folder), "--max-new-tokens", "1"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT, text=True) as process:
        process.stdin.write("/help\n")
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 143
        assert process.stderr.read().endswith("stopped\n")


# ---- images that are refused, and images that are read


def write_text(file):
    file.write_text("not an image")


def write_truncated(file):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:-2000])


def write_bomb(file):
    """20,000 x 20,000 pixels of one bit, written by hand: PIL would need 400 MB for them."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = 20_000
    header, rows = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0), bytes(side * (1 + side // 8))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


REFUSED = {
    "missing.png": lambda file: None,
    "folder.png": lambda file: file.mkdir(),
    "empty.png": lambda file: file.touch(),
    "text.png": write_text,
    "truncated.png": write_truncated,
    "truncated.jpg": write_truncated,
    "one_by_one.png": lambda file: Image.new("RGB", (1, 1)).save(file),
    "bomb.png": write_bomb,
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_images_are_refused_before_loading_a_model(refused, tmp_path, monkeypatch, name):
    monkeypatch.setattr(chat, "load_model", None)
    REFUSED[name](tmp_path / name)
    assert name in refused(main, "--image", tmp_path / name, "--prompt", "what is this?")


def save_rgba(image, file):
    clear = Image.new("RGBA", image.size, (0, 0, 0, 0))
    clear.paste(image.convert("RGBA").crop((0, 0, 64, 32)), (0, 0))
    clear.paste(image.convert("RGBA").crop((0, 32, 32, 64)), (0, 32))
    clear.save(file)  # the white quarter is transparent


def save_rotated(image, file):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    image.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)


def save_animated(image, file):
    image.save(file, save_all=True, append_images=[Image.new("RGB", image.size, "black")] * 2)


READ = {
    "plain.png": lambda image, file: image.save(file),
    "animated.gif": save_animated,
    "palette.png": lambda image, file: image.convert("P").save(file),
    "rgba.png": save_rgba,
    "cmyk.tif": lambda image, file: image.convert("CMYK").save(file),
    "rotated.png": save_rotated,
}


@pytest.mark.parametrize("name", READ)
def test_every_kind_of_image_is_read_right(run, tiny_folder, spoken, picture, tmp_path, name):
    spoken[0].append(["ok"])
    READ[name](Image.open(picture), tmp_path / name)
    assert run(main, "--model", tiny_folder, "--image", tmp_path / name, "--prompt", "?").status == 0
    image = spoken[1][0][0][0]["content"][0]["image"]
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(picture)))


def test_16_bit_images_are_scaled(run, tiny_folder, spoken, tmp_path):
    spoken[0].append(["ok"])
    values = np.array([[0, 65535], [32768, 257]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    run(main, "--model", tiny_folder, "--image", tmp_path / "deep.png", "--prompt", "?")
    image = spoken[1][0][0][0]["content"][0]["image"]
    assert np.asarray(image)[..., 0].tolist() == [[0, 255], [128, 1]]


# ---- other bad input


@pytest.mark.parametrize(
    "words, told",
    [
        (["--prompt", ""], "--prompt is empty"),
        (["--prompt", " \n"], "--prompt is empty"),
        (["--prompt", "hi", "--temperature", "-0.5"], "temperature -0.5 is neither 0"),
        (["--prompt", "hi", "--top-p", "0"], "top_p 0.0 is outside"),
        (["--prompt", "hi", "--cfg-scale", "0.5"], "cfg_scale 0.5 is below 1"),
        (["--prompt", "hi", "--max-new-tokens", "0"], "--max-new-tokens 0 is below 1"),
        (["--prompt", "hi", "--seed", "-1"], "seed -1 is outside"),
        (["--prompt", "hi", "--seed", str(2**64)], f"seed {2**64} is outside"),
        (["--temperature", "warm"], "--temperature: invalid float value: 'warm'"),
    ],
)
def test_wrong_options_are_refused_before_loading_a_model(refused, monkeypatch, words, told):
    monkeypatch.setattr(chat, "load_model", None)
    assert told in refused(main, *words)


def test_an_unknown_model_is_refused(refused):
    assert "no_such_model" in refused(main, "--model", "no_such_model", "--prompt", "hello")


def test_a_very_long_prompt_is_refused(refused, tiny_folder):
    line = refused(main, "--model", tiny_folder, "--prompt", "a cat " * 17_000)
    assert "the model reads 256: shorten" in line and len(line) < 300


def test_pictures_are_shown_in_a_terminal(tiny_folder, picture, tmp_path):
    """What is attached and what is drawn: in half blocks, as this terminal answers no question."""
    words = ["--model", str(tiny_folder), "--image", str(picture), "--out", str(tmp_path / "out")]
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "scripts.chat", *words]
    with subprocess.Popen(command, cwd=ROOT, stdin=child, stdout=child, stderr=child) as process:
        os.close(child)

        def shown_before(mark: bytes) -> bytes:
            seen = b""
            while mark not in seen:
                seen += os.read(parent, 65536)
            return seen

        assert shown_before(b"> ").count("▀".encode()) == 40 * 20
        os.write(parent, b"/draw a cat\n")
        shown = shown_before(b"> ")
        assert b"0001.png" in shown and shown.count("▀".encode()) == 40 * 20
        os.write(parent, b"/quit\n")
        assert process.wait(WAIT) == 0
    os.close(parent)
