"""Serving until a signal: then what runs is finished, and what is new is refused."""

import logging
import signal
import socket
import time
from types import FrameType

import uvicorn

from .limits import Gate

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
