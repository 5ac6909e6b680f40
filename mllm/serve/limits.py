"""Limits, and the gate that applies them to requests before the app sees them."""

import asyncio
import hashlib
import hmac
import logging
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..decode.engine import Handle
from .errors import Refusal
from .metrics import Metrics

log = logging.getLogger(__name__)

OPEN_PATHS = ("/", "/health", "/openapi.json", "/page.js", "/page.css")  # these, and the examples, need no key
LEFT = 499  # nginx's status for requests whose client did not wait
RETRY = 5  # seconds after which a busy server may be asked again
DRAIN = 4  # times the longest body is read and dropped: a client does not read the answer while it is sending
PAGE_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:"
HEADERS = {
    "content-security-policy": f"{PAGE_POLICY}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@dataclass(frozen=True)
class Limits:
    """The most that a request may have: `body` in bytes, `pixels` of an image, `prompt` in characters of all messages,
    `images`, `n` images to draw (candidates included), and `seconds` until its answer is complete. `queue` requests
    may wait. At the end, requests under way have `grace` seconds to finish."""

    body: int = 20 * 2**20
    pixels: int = 16_000_000
    prompt: int = 8000
    images: int = 8
    n: int = 8
    queue: int = 64
    seconds: float = 120
    grace: float = 30


class Gate:
    """ASGI middleware around the app. It checks the key and the host name, counts requests under way, reads bodies up
    to a size, refuses requests while the server closes, and logs sizes and times only. When a request has ended for
    whatever reason, its work in the engine (`state["handles"]`) is cancelled."""

    def __init__(
        self, app: ASGIApp, limits: Limits, metrics: Metrics, room: int, key: str | None, hosts: set[str] | None
    ):
        self.app, self.limits, self.metrics, self.room, self.hosts = app, limits, metrics, room, hosts
        self.key = None if key is None else hashlib.sha256(key.encode()).digest()
        self.inside, self.closing = 0, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, sent = time.monotonic(), {"status": LEFT, "bytes": 0}
        handles: list[Handle] = []
        scope["state"] = {"handles": handles, "start": start, "deadline": start + self.limits.seconds}

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent["status"] = message["status"]
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            sent["bytes"] += len(message.get("body", b""))
            await send(message)

        works, size = scope["path"].startswith("/v1/") and scope["method"] == "POST", 0
        self.inside += works
        try:
            self._check(scope, works)
            body = await self._body(scope, receive)
            size = len(body)
            await self.app(scope, replayed(body, receive), counted)
        except Refusal as refusal:
            await refusal.response()(scope, receive, counted)
        except ClientDisconnect:
            pass
        except Exception as error:  # its message may quote the request
            log.error("%s %s", type(error).__name__, where(error))
        finally:
            self.inside -= works
            for handle in handles:
                handle.cancel()
                self.metrics.count(handle)
            seconds = time.monotonic() - start
            path = getattr(scope.get("route"), "path", "-")  # as the app wrote it, not as the client did
            self.metrics.seconds.labels(path, sent["status"]).observe(seconds)
            log.info("%s %s in %d out %d bytes, %.3f s", path, sent["status"], size, sent["bytes"], seconds)

    def _check(self, scope: Scope, works: bool) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        if self.hosts and host_name(headers.get("host", "")) not in self.hosts:
            # A page elsewhere whose name resolves to this machine could otherwise read our answers.
            raise Refusal(403, f"this server is called {' or '.join(sorted(self.hosts))}")
        if self.key and not (path in OPEN_PATHS or path.startswith("/examples/")):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            digest = hashlib.sha256(given.strip().encode()).digest()
            if scheme.lower() != "bearer" or not hmac.compare_digest(digest, self.key):
                raise Refusal(401, "wrong or missing API key: send Authorization: Bearer KEY", code="invalid_api_key")
        if works and self.closing:
            raise Refusal(503, "the server is shutting down", retry=RETRY)
        if works and self.inside > self.room:
            raise Refusal(429, f"{self.room} requests are under way: try again later", code="queue_full", retry=RETRY)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        try:
            return await asyncio.wait_for(self._read(scope, receive), self.limits.seconds)
        except TimeoutError:
            raise Refusal(408, f"the request did not arrive within {self.limits.seconds:g} seconds") from None

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        declared = int(Headers(scope=scope).get("content-length", "0"))  # a number, or the server had refused it
        chunks, size, limit, message = [], 0, self.limits.body, {"more_body": True}
        while message.get("more_body") and max(size, declared) <= DRAIN * limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            size += len(message.get("body", b""))
            if size <= limit:
                chunks.append(message.get("body", b""))
        if max(size, declared) > limit:
            raise Refusal(413, f"the request has more than {limit} bytes: send smaller or fewer images")
        return b"".join(chunks)


def host_name(host: str) -> str:
    """The host name of a Host header, without port and in one spelling; "" if the header is malformed."""
    found = re.fullmatch(r"(\[[^\[\]]*\]|[^:\[\]]*)(:\d*)?", host.lower())
    name = found[1].strip("[]").removesuffix(".") if found else ""
    with suppress(ValueError):
        name = str(ip_address(name))
    return name


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that first gives the body, which was read already, and then what comes."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


def where(error: Exception) -> str:
    """File and line that raised it."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"in {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
