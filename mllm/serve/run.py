"""Serving until a signal: then what runs is finished, and what is new is refused."""

import logging
import signal
import socket
import sys
import time
from collections.abc import Sequence
from types import FrameType

import uvicorn
from PIL import Image

from ..decode.engine import Engine
from .app import LOOPBACK, create_app
from .limits import Gate, Limits
from .remote import Remote

LINGER = 3  # seconds for connections to close once their answers are sent


class Server(uvicorn.Server):
    """Refuses (503) while it finishes, which uvicorn would not: it stops to listen at once."""

    def __init__(self, config: uvicorn.Config, gate: Gate):
        super().__init__(config)
        self.gate, self.end = gate, float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.gate.closing and sig == signal.SIGINT:  # Ctrl-C once more
            self.should_exit = self.force_exit = True
        if not self.gate.closing:
            self.gate.closing, self.end = True, time.monotonic() + self.gate.limits.grace

    async def on_tick(self, counter: int) -> bool:
        if self.gate.closing and (not self.gate.inside or time.monotonic() > self.end):
            self.should_exit = True
        return await super().on_tick(counter)


def listen(host: str, port: int) -> socket.socket:
    """Raises ValueError where nothing can listen; port 0 is any free one."""
    try:
        if not 0 <= port < 2**16:  # create_server would leave its socket open
            raise OverflowError("ports are 0 to 65535")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}") from error


def run_server(
    engine: Engine,
    listener: socket.socket,
    host: str,
    name: str,
    limits: Limits,
    key: str | None = None,
    examples: Sequence[Image.Image] = (),
    remote_images: bool = False,
) -> None:
    """Says where a model called `name` is served, and serves it as `serve` does. On a loopback `host`, those for other
    hosts are refused. With `remote_images`, images are fetched at addresses that requests name."""
    hosts = LOOPBACK if host in LOOPBACK else None
    gate = create_app(engine, name, limits, key, hosts, examples, Remote(limits.body) if remote_images else None)
    shown = f"[{host}]" if ":" in host else host
    where = f"http://{shown}:{listener.getsockname()[1]}"
    print(f"{name} at {where}: the page; the API at {where}/v1; Ctrl-C ends it", flush=True)
    if hosts is None and key is None:
        print("anybody who reaches this address may use it: --api-key-file asks for a key", file=sys.stderr)
    serve(gate, listener)


def serve(gate: Gate, listener: socket.socket) -> None:
    """Returns after SIGTERM or SIGINT, once requests have ended or `grace` is over; at once after a second SIGINT."""
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    config = uvicorn.Config(
        gate,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=LINGER,
    )
    Server(config, gate).run(sockets=[listener])
