"""A server as reward: what it is sent, tries, and limits of time and size."""

import base64
import io
import json
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest
from PIL import Image

from training.rl.drawings import Group
from training.rl.prompts import Prompt
from training.rl.rewards import Judge
from training.rl.rewards.http import LARGEST, http
from training.run.recipe import RewardConfig

LATE = 0.4  # seconds that a server has in these tests


@pytest.fixture
def serve():
    """A function: what answers a request (handler, body) -> the address of a server."""
    servers, done = [], Event()

    def start(answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with suppress(OSError):  # the client has left
                    answer(self, body)

            def log_message(self, *_):
                pass

            def send(self, content: bytes, status: int = 200):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(content)

        Handler.done = done
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/judge?by=taste"

    yield start
    done.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def groups(count: int = 1) -> list[Group]:
    images = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (10, 20)]
    return [Group(Prompt(f"prompt {number}", {}), [None, None], images) for number in range(count)]


def judged(url: str, count: int = 1, **options) -> list[Group]:
    found = groups(count)
    Judge({"taste": RewardConfig(kind="http", at=url, **options)}, {"http": http}, None, None)(found)
    return found


def test_a_server_sees_prompt_and_images(serve):
    def answer(handler, body):
        shades = [Image.open(io.BytesIO(base64.b64decode(one))).getpixel((0, 0))[0] for one in body["images"]]
        assert body["prompt"] == "prompt 0" and handler.path == "/judge?by=taste"
        handler.send(json.dumps({"rewards": shades}).encode())

    assert judged(serve(answer))[0].rewards.tolist() == [10, 20]


def test_a_failure_is_tried_again_and_printed(serve, capsys):
    tries = []

    def answer(handler, body):
        tries.append(body)
        handler.send(b'{"rewards": [1, 2]}' if len(tries) == 2 else b"", 200 if len(tries) == 2 else 503)

    assert judged(serve(answer))[0].rewards.tolist() == [1, 2]
    assert "/judge?by=taste: try 1 of 3: ValueError: status 503 in place of rewards" in capsys.readouterr().err


def silent(handler, body):
    handler.done.wait(600)


def dripping(handler, body):
    """A byte again and again, each in time for a socket that only limits the wait for the next one."""
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n")
    drip(handler)


def dripping_body(handler, body):
    handler.send(b"{")
    drip(handler)


def drip(handler):
    while not handler.done.wait(0.1):
        handler.wfile.write(b"x")


@pytest.mark.parametrize("answer", [silent, dripping, dripping_body])
def test_a_server_that_hangs_costs_its_time_not_the_run(serve, answer):
    """Until the test is over, these servers do not end an answer."""
    found = judged(serve(answer), count=4, seconds=LATE)
    for number, group in enumerate(found):
        assert group.rewards is None and f"'prompt {number}': reward taste: " in group.problem
        assert f"gave no rewards within {LATE:g} seconds; the last try: no answer in time" in group.problem


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"rewards": [1]}', "1 values for 2 drawings"),
        (b'{"rewards": [1, NaN]}', "a value is nan"),
        (b'{"rewards": [1, null]}', "TypeError"),
        (b'{"scores": [1, 2]}', "KeyError: 'rewards'"),
        (b"[1, 2]", "TypeError"),
        (b"<html>", "JSONDecodeError"),
        (b" " * (LARGEST + 1), f"more than {LARGEST} bytes in place of rewards"),
    ],
)
def test_answers_that_are_no_rewards(serve, content, why):
    [group] = judged(serve(lambda handler, _: handler.send(content)), tries=1)
    assert why in group.problem and group.rewards is None


def test_nobody_listens_and_bad_addresses():
    [group] = judged("http://127.0.0.1:9/", tries=2, seconds=5)
    assert "ConnectionRefusedError" in group.problem
    for at in (None, "127.0.0.1:8000", "ftp://host/x", "http://"):
        with pytest.raises(ValueError, match="recipe, rewards.taste: at is .*: give the address of a server"):
            judged(at)
