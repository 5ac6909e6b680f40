"""scripts.serve: its command line, and the process: signals, and what it leaves behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from scripts.serve import main
from scripts.serve_soak import main as soak

ROOT = Path(__file__).parents[2]
WAIT = 120  # seconds, for machines under load


@pytest.fixture
def launch(tiny_folder, tmp_path):
    """launch(*words) -> (process, address): started in an empty folder, with an empty folder for temporary files."""
    started = []

    def launch(*words, at="http://127.0.0.1:", folder=tmp_path / "here"):
        (tmp_path / "here").mkdir(exist_ok=True)
        (tmp_path / "tmp").mkdir(exist_ok=True)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp"), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "scripts.serve", "--model", str(tiny_folder), "--port", "0", *words]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True))
        line = started[-1].stdout.readline()
        assert at in line, started[-1].stderr.read()
        return started[-1], line.split(": ")[0].split(" at ")[1]

    yield launch
    for process in started:
        process.kill()
        process.communicate()


def _post(url: str, body: dict):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    return urllib.request.urlopen(request, timeout=WAIT)


def _draw(url: str) -> int:
    return len(json.load(_post(f"{url}/v1/images/generations", {"prompt": "a dog", "n": 4}))["data"])


def test_sigterm_finishes_what_runs(launch, tmp_path):
    process, url = launch()
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 200, "temperature": 1, "stream": True}
    answer = _post(f"{url}/v1/chat/completions", body)
    answer.readline()
    process.send_signal(signal.SIGTERM)
    assert answer.read().endswith(b"data: [DONE]\n\n")
    assert process.wait(WAIT) == 0
    assert "Traceback" not in process.communicate()[1]
    assert not [*(tmp_path / "here").iterdir(), *(tmp_path / "tmp").iterdir()]  # nothing is ever on disk


def test_what_is_printed_is_an_address_and_a_name(launch, tiny_folder):
    """Also of IPv6, and of a model in the folder where it stands."""
    process, url = launch("--host", "::1", "--name", "org/scenes", at="http://[::1]:")
    with urllib.request.urlopen(f"{url}/v1/models/org/scenes") as answer:
        assert json.load(answer)["id"] == "org/scenes"
    _, url = launch("--model", ".", folder=tiny_folder)
    with urllib.request.urlopen(f"{url}/v1/models") as answer:
        assert json.load(answer)["data"][0]["id"] == tiny_folder.name


@pytest.mark.slow  # starts servers of their own
def test_kill_leaves_nothing_behind(launch, tmp_path):
    process, url = launch()
    port = int(url.rsplit(":", 1)[1])
    assert _draw(url) == 4
    process.kill()
    process.wait(WAIT)
    assert not [*(tmp_path / "here").iterdir(), *(tmp_path / "tmp").iterdir()]
    _, again = launch("--port", str(port))
    assert again == url and _draw(again) == 4


def test_impossible_options_are_told_in_one_line(refused, tmp_path, tiny_folder):
    empty, two, binary = tmp_path / "empty", tmp_path / "two", tmp_path / "binary"
    empty.write_text("\n")
    two.write_text("two words\n")
    binary.write_bytes(b"\xff\xfe\x00")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for words, told in [
            (["--max-rows", 1], "--max-rows 1 is below 2"),
            (["--max-queue", 0], "--max-queue 0 is not above 0"),
            (["--timeout", "nan"], "--timeout nan"),
            (["--max-body-mb", -1], "--max-body-mb -1.0"),
            (["--port", 99999], "cannot listen on 127.0.0.1:99999"),
            (["--port", "http"], "--port: invalid int value"),
            (["--host", "nowhere.invalid"], "cannot listen on nowhere.invalid:8000"),
            (["--port", taken.getsockname()[1]], "Address already in use"),
            (["--api-key-file", tmp_path / "none"], "No such file"),
            (["--api-key-file", tmp_path], "Is a directory"),
            (["--api-key-file", empty], "holds no key"),
            (["--api-key-file", two], "holds no key"),
            (["--api-key-file", binary], "is not text"),
            (["--port", 0, "--model", "nothing"], "nothing"),
        ]:
            assert told in refused(main, *words)


def test_without_its_packages_it_says_what_to_install(refused, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("mllm.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "fastapi is not installed: `make dev`" in refused(main)


@pytest.mark.slow
def test_a_short_soak(run, tiny_folder, tmp_path):
    file = tmp_path / "soak.json"
    ended = run(soak, "--model", tiny_folder, "--minutes", 0.05, "--clients", 4, "--rounds", 1, "--out", file)
    figures = json.loads(file.read_text())
    assert ended.status == 0 and json.loads(ended.out) == figures
    assert figures["error_count"] == 0 and figures["requests_per_second"] > 0
    assert figures["requests_per_second_compared"]["ratio"] > 0
