"""What all scripts share: how they end, and that they start at once."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from mllm.decode.options import DrawingOptions
from mllm.fast import quantize
from scripts import _drawing, _load
from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    "chat",
    "convert",
    "demo",
    "doctor",
    "draw_benchmark",
    "eval_lmms",
    "eval_scenes",
    "geneval",
    "image_metrics",
    "reconstruct",
    "results",
    "text_to_image",
]


def raises(error: BaseException):
    def main(argv):
        raise error

    return main


def test_a_good_end_is_status_0(run):
    assert run(lambda argv: print("fine")) == (0, "fine\n", "")


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("colour 'blu' is unknown:\n  known: blue"), "colour 'blu' is unknown: known: blue"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), "a.txt: No such file or directory"),
        (OSError("it broke"), "it broke"),
        (ValueError(), "ValueError"),
        (
            ModuleNotFoundError("No module named 'omegaconf.errors'", name="omegaconf.errors"),
            "omegaconf is not installed: `make dev` installs what all commands need",
        ),
    ],
)
def test_what_a_user_can_cause_is_one_line(run, error, line):
    assert run(raises(error)) == (2, "", f"error: {line}\n")


def test_ctrl_c_is_one_word(run):
    assert run(raises(KeyboardInterrupt())) == (130, "", "stopped\n")


def test_sigterm_is_one_word(run):
    def main(argv):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    assert run(main) == (143, "", "stopped\n")


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(KeyError):
        cli(raises(KeyError("ours")), [])


def test_wrong_options_are_one_line(refused):
    def main(argv):
        parser = Parser("doc")
        parser.add_argument("-n", type=int)
        parser.parse_args(argv)

    assert "-n: invalid int value: 'many'" in refused(main, "-n", "many")
    assert "--colour" in refused(main, "--colour", "red")


HELP = """
import contextlib, importlib, io, json, sys
for name in sys.argv[1:]:
    script, shown, status = importlib.import_module(f"scripts.{name}"), io.StringIO(), None
    needs_torch = "torch" in sys.modules
    with contextlib.redirect_stdout(shown):
        try:
            script.main(["--help"])
        except SystemExit as ended:
            status = ended.code
    print(json.dumps([name, status, shown.getvalue(), needs_torch]))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int, str, bool]]:
    """Of all scripts, in one process: its status, what it shows, and whether torch was there before."""
    told = subprocess.run([sys.executable, "-c", HELP, *SCRIPTS], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name: tuple(rest) for name, *rest in map(json.loads, told.stdout.splitlines())}


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_the_docstring_and_needs_no_torch(helps, name):
    status, shown, needs_torch = helps[name]
    assert status == 0 and f"python -m scripts.{name} " in shown and not needs_torch


def test_what_help_says_of_the_model_is_told_without_torch():
    assert {field.name: field.default for field in fields(DrawingOptions)} == {
        name: _drawing._FIELDS[name].default for name in _drawing.DRAWING
    }
    assert list(_load.QUANTIZATIONS) == list(quantize.KINDS)


def test_imports_are_not_interrupted_by_collecting_garbage():
    with pytest.raises(ValueError), stop_at_once():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()
    with stop_at_once(), stop_at_once():  # as in functions that call each other
        pass
    assert gc.isenabled()


def test_leaving_does_not_collect_what_was_imported():
    code = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0)); "
    code += "from scripts._errors import cli; cli(lambda: 0)"
    left = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (left.returncode, left.stdout) == (0, "True\n")


def test_a_warning_is_one_line():
    code = "import warnings; from scripts._errors import cli; cli(lambda: warnings.warn('no compiler'))"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stderr
        == "note: no compiler\n"
    )


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    check_folder(tmp_path)
    check_folder(tmp_path / "new" / "newer")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"cannot write to .*file is not a folder; choose another --out"):
            check_folder(folder)


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ValueError, match="no permission in .*; choose another --out"):
        check_folder(tmp_path / "new")


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)


def start(*words) -> subprocess.Popen:
    """Whatever runs these tests may ignore Ctrl-C, as shells let what runs in the background do."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, text=True, preexec_fn=hear_ctrl_c, **pipes)


def hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
def test_ctrl_c_while_torch_is_imported(tiny_folder):
    with start("scripts.chat", "--model", tiny_folder, "--prompt", "what is this?") as process:
        wait_for(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text(), process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "stopped\n")


def test_ctrl_c_while_drawing_leaves_whole_files(tiny_folder, tmp_path):
    words = ("--model", tiny_folder, "--out", tmp_path / "out", "-n", 5_000, "--batch-size", 2)
    with start("scripts.text_to_image", "a cat", *words) as process:
        wait_for((tmp_path / "out" / "0002.png").exists, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err.endswith("stopped\n") and "Traceback" not in err
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    lines = (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()
    assert names[-1] == "metadata.jsonl" and len(names) - 1 - len(lines) in (0, 1)
    assert names[:-1] == [f"{index:04d}.png" for index in range(len(names) - 1)]
