"""Images at addresses: fetched where that is allowed, and never from here."""

import asyncio
import base64
import http.client
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import NamedTuple

import pytest

from mllm.serve.errors import Refusal
from mllm.serve.remote import Remote, To, is_public
from tests.mllm.serve.conftest import WAIT, about, data_uri, picture, until

CHAT = "/v1/chat/completions"
RED = base64.b64decode(data_uri(picture()).split(",")[1])
NAME = "the image in message 1"


class Host(NamedTuple):
    url: str
    asked: list  # (path, headers) of each request
    release: Event  # of those who wait for /held.png


@pytest.fixture
def host():
    """A server of images, on loopback."""
    asked, release = [], Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers))
            if self.path == "/held.png":
                release.wait(WAIT)
            if self.path == "/moved.png":
                self.send_response(302)
                self.send_header("location", "/red.png")
            else:
                self.send_response(404 if self.path == "/none.png" else 200)
            self.end_headers()
            self.wfile.write(b"<html>" if self.path == "/page.png" else RED)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Host(f"http://127.0.0.1:{server.server_port}", asked, release)
    release.set()
    server.shutdown()
    server.server_close()
    thread.join(WAIT)


def anywhere(_: str) -> bool:
    return True


def fetch(*urls: str, max_bytes: int = 10_000, seconds: float = WAIT, allowed=anywhere) -> dict[str, bytes]:
    return asyncio.run(Remote(max_bytes, WAIT, allowed).fetch(dict.fromkeys(urls, NAME), seconds))


def status_of(*urls: str, **options) -> tuple[int, str]:
    with pytest.raises(Refusal) as refusal:
        fetch(*urls, **options)
    return refusal.value.status, refusal.value.message


def test_an_image_is_fetched(host, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # is not looked at
    url = f"{host.url}/red.png?size=1&x=%20#part"
    assert fetch(url) == {url: RED}
    [(path, headers)] = host.asked
    assert (path, headers["host"]) == ("/red.png?size=1&x=%20", host.url.removeprefix("http://"))
    assert not {"authorization", "cookie", "referer"} & {name.lower() for name in headers}


def test_only_public_hosts_are_asked(host):
    port = host.url.rsplit(":", 1)[1]
    for name in ("127.0.0.1", "localhost", "127.1", "2130706433", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"):
        for scheme in ("http", "HTTPS"):
            status, told = status_of(f"{scheme}://{name}:{port}/red.png", allowed=is_public)
            assert status == 422 and "no public address" in told, name
    assert status_of("http://nowhere.invalid/x.png")[1] == f"{NAME}: nowhere.invalid has no public address"
    assert host.asked == []


def test_one_private_address_of_a_host_is_enough(host):
    seen = []
    status_of(host.url.replace("127.0.0.1", "localhost"), allowed=lambda address: seen.append(address))
    assert set(seen) <= {"127.0.0.1", "::1"} and seen and host.asked == []


def test_public_is_what_is_on_the_internet():
    public = ("8.8.8.8", "93.184.216.34", "2606:2800:220:1::1")
    private = ("10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1")
    reserved = ("240.0.0.1", "255.255.255.255", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "ff02::1", "2001:db8::1")
    holding = ("::ffff:10.0.0.1", "::ffff:8.8.8.8", "64:ff9b::10.0.0.1", "2002:0a00:0001::1", "::10.0.0.1")
    assert all(map(is_public, public))
    assert not any(map(is_public, (*private, *reserved, *holding)))


def test_the_connection_goes_to_the_address_that_was_checked(host):
    port = int(host.url.rsplit(":", 1)[1])

    async def connect():
        stream = await To("127.0.0.1").connect_tcp(host="nowhere.invalid", port=port)
        peer = stream.get_extra_info("server_addr")
        await stream.aclose()
        return peer

    assert asyncio.run(connect())[:2] == ("127.0.0.1", port)


def test_what_is_fetched_has_an_end(host):
    red = f"{host.url}/red.png"
    assert status_of(red, max_bytes=len(RED) - 1)[0] == 413
    assert status_of(red, f"{red}?2", max_bytes=2 * len(RED) - 1)[0] == 413  # together
    assert len(fetch(red, f"{red}?2", max_bytes=2 * len(RED))) == 2
    late = "the images at addresses did not arrive within 0.2 seconds"
    assert status_of(f"{host.url}/held.png", seconds=0.2) == (504, late)


def test_what_is_not_there_is_refused(host):
    told = "its host answered 302 where 200 is an image; redirects are not followed"
    assert status_of(f"{host.url}/moved.png") == (422, f"{NAME}: {told}")
    assert "its host answered 404" in status_of(f"{host.url}/none.png")[1]
    assert [path for path, _ in host.asked] == ["/moved.png", "/none.png"]
    assert "user or password" in status_of(host.url.replace("//", "//me:secret@") + "/red.png")[1]
    assert len(host.asked) == 2


def test_damaged_addresses_are_refused(host):
    for url in ("http://", "http:///x", "https://[x/", "http://a:99999/", "http://a:0/", "http://a\r\nb/", "http://ä/"):
        assert "not an address" in status_of(url)[1], url
    assert "cannot be fetched" in status_of(host.url.replace("http:", "https:") + "/red.png")[1]  # speaks no TLS
    assert "cannot be fetched" in status_of("http://127.0.0.1:1/x.png")[1]  # nobody is there


def test_a_chat_about_an_address_is_one_about_its_image(start, tiny_model, host):
    server = start(*tiny_model, remote=Remote(10_000, WAIT, anywhere))
    ask = {"max_tokens": 6, "modalities": ["text"]}
    answers = [
        server.post(CHAT, {"messages": about("what is this?", uri), **ask})
        for uri in (f"{host.url}/red.png", data_uri(picture()))
    ]
    assert [answer.status for answer in answers] == [200, 200]
    assert len({answer.body["choices"][0]["message"]["content"] for answer in answers}) == 1
    refused = server.post(CHAT, {"messages": about("?", f"{host.url}/page.png"), **ask})
    assert refused.status == 422 and "is none of PNG" in refused.body["error"]["message"]
    for path in ("file:///etc/passwd", "/etc/passwd", "ftp://127.0.0.1/red.png", "//127.0.0.1/red.png"):
        refused = server.post(CHAT, {"messages": about("?", path), **ask})
        assert refused.status == 422 and "paths are never read" in refused.body["error"]["message"]


def test_what_is_refused_anyway_is_not_fetched(start, tiny_model, host):
    server = start(*tiny_model, remote=Remote(10_000, WAIT, anywhere))
    for messages in (about("x" * 9000, f"{host.url}/red.png"), about("?", *[f"{host.url}/red.png"] * 9)):
        assert server.post(CHAT, {"messages": messages}).status == 422
    assert host.asked == []


def test_who_hangs_up_ends_the_fetching(start, tiny_model, host):
    server = start(*tiny_model, remote=Remote(10_000, 2 * WAIT, anywhere))
    client = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=WAIT)
    body = json.dumps({"messages": about("?", f"{host.url}/held.png")})
    client.request("POST", CHAT, body, {"content-type": "application/json"})
    until(lambda: host.asked)
    client.close()
    until(lambda: not server.gate.inside)
    assert not host.release.is_set()
