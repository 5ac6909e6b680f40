"""Damaged and hostile requests: each has its status, and the server goes on."""

import base64
import json
import logging
import socket
import struct
import urllib.request
import zlib
from threading import Event

import pytest
import torch

from tests.mllm.serve.conftest import WAIT, about, data_uri, picture, until

CHAT, DRAW = "/v1/chat/completions", "/v1/images/generations"
JUNK = ["x", -1, 1e999, float("nan"), [], {}, True, "1", 2**70, "\ud800", None]


def _png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _uri(raw: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"


def bad_images() -> list[str]:
    good = base64.b64decode(data_uri(picture()).split(",")[1])
    jpeg = base64.b64decode(data_uri(picture(), "JPEG").split(",")[1])
    return [
        *("http://127.0.0.1:1/x.png", "https://example.org/x.png", "file:///etc/passwd", "/etc/passwd", "../x.png", ""),
        *(
            "ftp://x/y",
            "blob:http://x",
            "javascript:alert(1)",
            "HTTP://example.org",
            "//example.org/x.png",
            "\\\\host\\x",
        ),
        *(
            "data:",
            "data:,",
            "data:text/plain;base64,aGk=",
            "data:image/png,abc",
            "data:image/png;base64",
            "DATA:image/png",
        ),
        *(
            "data:image/png;base64,",
            "data:image/png;base64,%%%",
            "data:image/png;base64,abc",
            "data:image/png;base64,é",
        ),
        *(_uri(good[:cut]) for cut in (1, 8, 20, 33, 40, 60)),
        *(_uri(jpeg[:cut]) for cut in (2, 30, 200, len(jpeg) // 2)),
        *(_uri(good[:place] + b"\xff" + good[place + 1 :]) for place in (0, 4, 12, 30, 45)),
        *(_uri(_png(*size)) for size in ((20000, 20000), (2**31 - 1, 2**31 - 1), (0, 5), (1, 1), (5000, 1), (64, 64))),
        _uri(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage", "eps"),
        _uri(b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", "svg+xml"),
        *(
            _uri(head + bytes(100))
            for head in (b"II*\0", b"8BPS", b"\0\0\1\0", b"SIMPLE", b"P6 9 9 255 ", b"GIF89a", b"BM")
        ),
    ]


def bad_values(fields: dict[str, list]) -> list[dict]:
    return [{name: value} for name, values in fields.items() for value in values]


def bad_messages() -> list:
    def user(content):
        return [{"role": "user", "content": content}]

    return [
        *([], {}, None, "hi", [[]], [None], ["hi"], [{}], [{"role": "user"}], [{"content": "hi"}]),
        *(user(content) for content in (None, 3, [], {}, [None], ["hi"], [{}], [{"type": "text"}], [{"type": "x"}])),
        *(user([{"type": "image_url", "image_url": url}]) for url in ("x", None, {}, {"url": 3}, {"url": None})),
        *([{"role": role, "content": "hi"}] for role in ("system", "tool", "root", "", None, 3, "assistant")),
        [*user("hi"), {"role": "assistant", "content": "hello"}],
        user("x" * 9000),
        user("a b " * 400),
        user(["\ud800"]),
        user([{"type": "text", "text": "hi", "file": "/etc/passwd"}]),
        user("hi") * 300,
        about("hi", *[data_uri(picture())] * 9),
    ]


def refused() -> list[tuple[str, object, set[int]]]:
    """(path, body, statuses it may have)"""
    numbers = {
        "temperature": [2.1, *JUNK],
        "top_p": [0, 1.1, *JUNK],
        "seed": [2**63, 1.5, *JUNK],
        "guidance": [0.9, *JUNK],
    }
    chat = {**numbers, "max_tokens": [0, 300, *JUNK], "stop": ["", [""], ["x"] * 5, "x" * 65, 3], "n": [0, 2, *JUNK]}
    chat |= {"stream": [1, "yes"], "modalities": ["text", ["audio"]], "tools": [{}, [{}]], "model": ["", "x", 3]}
    draw = {**numbers, "n": [0, 9, *JUNK], "prompt": ["", "  ", "x" * 9000, "dog " * 900, 3, [], "\ud800"]}
    draw |= {"size": ["", "31x32", "9" * 999, 32], "response_format": ["url"], "partial_images": [-1, 9], "stream": [3]}
    draw |= {"steps": [-1, 3, *JUNK]}
    hello = {"messages": about("hi"), "max_tokens": 1}
    bodies = [(CHAT, {**hello, **bad}) for bad in bad_values(chat) if list(bad.values()) != [None]]
    bodies += [(DRAW, {"prompt": "a dog", **bad}) for bad in bad_values(draw) if list(bad.values()) != [None]]
    bodies += [(CHAT, {**hello, "messages": messages}) for messages in bad_messages()]
    bodies += [(CHAT, {**hello, "messages": about("what?", uri)}) for uri in bad_images()]
    bodies += [(DRAW, {"prompt": "a dog", "n": 3, "candidates": 3}), (DRAW, {"prompt": "a dog", "candidates": 0})]
    bodies += [(DRAW, {"prompt": "a dog", "stream": True, "n": 2}), (DRAW, {}), (DRAW, {"prompt": "x", "\ud800": 1})]
    known = [(path, body, {404} if body.get("model") in ("", "x") else {422}) for path, body in bodies]
    raw = [
        b"",
        b"{",
        b"null",
        b"[]",
        b"3",
        b'"hi"',
        b"\xff\xfe",
        b"{}{}",
        b"[" * 100_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
    ]
    return known + [(path, body, {400, 422}) for path in (CHAT, DRAW) for body in raw]


def test_two_hundred_requests_that_are_refused(served):
    cases = refused()
    assert len(cases) >= 200
    wrong = []
    for path, body, statuses in cases:
        answered = served.post(path, body)
        error = answered.body.get("error", {})
        if answered.status not in statuses or not error.get("message") or "type" not in error:
            wrong.append((answered.status, path, str(body)[:200]))
    assert not wrong
    assert served.post(CHAT, {"messages": about("hi"), "max_tokens": 1}).status == 200
    until(lambda: served.engine.running == served.engine.waiting == served.gate.inside == 0)


def _say(url: str, sent: bytes, leave: bool = False) -> bytes:
    """Bytes on a connection, and the first that come back."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=WAIT) as connection:
        connection.sendall(sent)
        if leave:
            return b""
        return connection.recv(100)


def test_what_is_no_http_hurts_nobody(served):
    post = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode()
    for sent in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50) + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"BREW /coffee\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        post + b"content-length: -5\r\n\r\n",
        post + b"content-length: x\r\n\r\n",
        post + b"content-length: 5\r\ncontent-length: 6\r\n\r\n12345",
        post + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
    ]:
        assert _say(served.url, sent).startswith(b"HTTP/1.1 4") or sent.startswith(post), sent[:60]
    for sent in [b"", b"GET", post, post + b"content-length: 500\r\n\r\nhalf"]:
        _say(served.url, sent, leave=True)
    until(lambda: served.gate.inside == 0)
    assert served.post(CHAT, {"messages": about("hi"), "max_tokens": 1}).status == 200


def test_bodies_have_an_end(start, tiny_model):
    server = start(*tiny_model, body=5000)
    whole = json.dumps({"messages": about("hi"), "max_tokens": 1}).encode()
    assert server.post(CHAT, whole.ljust(5000)).status == 200
    for size in (5001, 15_000):
        answered = server.post(CHAT, whole.ljust(size))
        assert answered.status == 413 and "more than 5000 bytes" in answered.body["error"]["message"]
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    assert b" 413 " in _say(server.url, f"{head}content-length: 3000000000\r\n\r\n".encode())
    chunked = f"{head}transfer-encoding: chunked\r\n\r\n".encode() + b"1000\r\n" + b" " * 4096 + b"\r\n"
    assert b" 413 " in _say(server.url, chunked + b"1000\r\n" + b" " * 4096 + b"\r\n0\r\n\r\n")


def test_a_request_that_does_not_arrive_has_an_end(start, tiny_model):
    server = start(*tiny_model, seconds=0.3)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\nhalf"
    assert b" 408 " in _say(server.url, head.encode())


def test_pixels_have_an_end(start, tiny_model):
    server = start(*tiny_model, pixels=1600)
    assert server.post(CHAT, {"messages": about("?", data_uri(picture(size=40))), "max_tokens": 1}).status == 200
    answered = server.post(CHAT, {"messages": about("?", data_uri(picture(size=41)))})
    assert answered.status == 422 and "at most 1,600" in answered.body["error"]["message"]


def test_the_key_is_asked_for_where_there_is_something_to_get(start, tiny_model):
    server = start(*tiny_model, key="secret")
    for path in ("/v1/models", "/metrics", "/v1/nothing", CHAT):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(server.url + path)
    for key in ("Bearer ", "Bearer secre", "Bearer secret2", "secret", "Basic secret", "bearer"):
        assert server.post(CHAT, {"messages": about("hi")}, authorization=key).status == 401
    assert server.post(CHAT, {"messages": about("hi"), "max_tokens": 1}, authorization="Bearer secret").status == 200
    for path in ("/", "/page.js", "/page.css", "/health", "/examples/0.png", "/openapi.json"):
        assert urllib.request.urlopen(server.url + path).status == 200


def test_other_pages_cannot_use_a_server_of_this_machine(served):
    body = {"messages": about("hi"), "max_tokens": 1}
    assert served.post(CHAT, body, host="evil.example:8000").status == 403
    assert served.post(CHAT, body, content_type="text/plain").status == 422  # what a form of another page may send
    with urllib.request.urlopen(served.url) as page:
        assert "default-src 'none'" in page.headers["content-security-policy"]


def test_nothing_of_a_request_is_logged(served, caplog):
    caplog.set_level(logging.INFO, "mllm.serve")
    for path in (CHAT, DRAW, "/v1/models/sesame", "/sesame?open=sesame"):
        served.post(path, {"messages": about("sesame"), "prompt": "sesame", "sesame": 1, "model": "sesame"})
    served.post(CHAT, {"messages": about("sesame"), "max_tokens": 1}, x_sesame="sesame")
    until(lambda: "/v1/chat/completions 200 in" in caplog.text)  # written once the client has its answer
    assert "sesame" not in caplog.text


def test_a_failure_is_500_and_logged_without_its_words(start, make_tiny_model, caplog):
    model, processor = make_tiny_model()

    def fail(*_):
        raise RuntimeError("sesame")

    hook = model.backbone.norm.register_forward_pre_hook(fail)
    server = start(model, processor)
    answered = server.post(CHAT, {"messages": about("hi")})
    assert answered.status == 500 and answered.body["error"]["type"] == "server_error"
    until(lambda: "RuntimeError in " in caplog.text)  # written beside the answer
    assert "sesame" not in caplog.text + str(answered.body)
    hook.remove()
    assert server.post(CHAT, {"messages": about("hi"), "max_tokens": 1}).status == 200


def _health(url: str) -> tuple[int, str]:
    try:
        return urllib.request.urlopen(f"{url}/health").status, ""
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]["message"]


def test_health_knows_a_stuck_engine(start, make_tiny_model):
    model, processor = make_tiny_model()
    release = Event()
    model.lm_head.register_forward_hook(lambda *_: release.wait(WAIT) and None)
    server = start(model, processor, seconds=0.3)
    assert _health(server.url) == (200, "")
    assert server.post(CHAT, {"messages": about("hi"), "max_tokens": 1}).status == 504
    until(lambda: _health(server.url)[0] == 503)
    assert "the engine is stuck" in _health(server.url)[1]
    release.set()
    until(lambda: _health(server.url)[0] == 200)
    assert server.post(CHAT, {"messages": about("hi"), "max_tokens": 1}).status == 200


def test_a_model_of_no_numbers_is_the_servers_failure(start, make_tiny_model):
    model, processor = make_tiny_model()
    with torch.no_grad():
        model.code_head.outputs[1].bias[3] = torch.nan
    server = start(model, processor)
    for body in ({}, {"top_p": 0.9}, {"guidance": 1}):
        answered = server.post(DRAW, {"prompt": "a dog", **body})
        assert answered.status == 500 and "logits are not finite" in answered.body["error"]["message"]
    assert server.post(CHAT, {"messages": about("hi"), "max_tokens": 1, "modalities": ["text"]}).status == 200


def test_metrics(start, tiny_model):
    server = start(*tiny_model)
    server.post(CHAT, {"messages": about("hi"), "max_tokens": 2})
    server.post(DRAW, {"prompt": "a dog"})
    text = urllib.request.urlopen(f"{server.url}/metrics").read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['mllm_tokens_total{kind="generated"}']) == 2 + 4
    assert float(values["mllm_waiting"]) == float(values["mllm_running"]) == 0
    assert float(values[f'mllm_request_seconds_count{{path="{CHAT}",status="200"}}']) == 1
    assert float(values["mllm_first_piece_seconds_count"]) == 2
