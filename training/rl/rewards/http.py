"""A server that judges. It is sent {"prompt": "...", "images": [PNG in base64, ...]} by POST, and answers
{"rewards": [a number for each image]}."""

import base64
import io
import json
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Timer
from urllib.parse import SplitResult, urlsplit

from PIL import Image

from mllm import Mllm, Processor

from ...run.recipe import RewardConfig
from ..drawings import Group

LARGEST = 2**20  # bytes of an answer
PAUSE = 0.5  # seconds before the second try, twice as many before each further one
CONNECTIONS = {"http": HTTPConnection, "https": HTTPSConnection}


def http(config: RewardConfig, model: Mllm, processor: Processor) -> Callable[[Group], Sequence[float]]:
    """All tries together take at most `seconds`; each failure is printed. Redirects are not followed. Raises ValueError
    for what is no address."""
    try:
        parts = urlsplit(config.at or "")
        known = parts.scheme in CONNECTIONS and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise ValueError(f"at is {config.at!r}: give the address of a server, as http://127.0.0.1:8000/rewards")

    def values(group: Group) -> Sequence[float]:
        body = json.dumps({"prompt": group.prompt.text, "images": [png(image) for image in group.images]})
        end, failure = time.monotonic() + config.seconds, ""
        for number in range(config.tries):
            pause = PAUSE * 2 ** (number - 1) if number else 0
            left = end - time.monotonic() - pause
            if left <= 0:
                break
            time.sleep(pause)
            try:
                return json.loads(post(parts, body, left))["rewards"]
            except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
                over = time.monotonic() >= end
                failure = "no answer in time" if over else f"{type(error).__name__}: {' '.join(str(error).split())}"
                print(f"{config.at}: try {number + 1} of {config.tries}: {failure}", file=sys.stderr, flush=True)
        raise ValueError(f"{config.at} gave no rewards within {config.seconds:g} seconds; the last try: {failure}")

    return values


def png(image: Image.Image) -> str:
    """As base64."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def post(parts: SplitResult, body: str, seconds: float) -> bytes:
    """The answer to a request, after `seconds` at most, however slowly its bytes come. Raises OSError, HTTPException,
    and ValueError for a status other than 200 or too long an answer."""
    end, connection = time.monotonic() + seconds, CONNECTIONS[parts.scheme](parts.hostname, parts.port, timeout=seconds)
    connection.connect()
    clock = Timer(max(0.0, end - time.monotonic()), shut, [connection.sock])  # its own timeout begins with each byte
    clock.start()
    try:
        target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        connection.request("POST", target, body.encode(), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read(LARGEST + 1)
        if answer.status != 200 or len(content) > LARGEST:
            what = f"status {answer.status}" if answer.status != 200 else f"more than {LARGEST} bytes"
            raise ValueError(f"{what} in place of rewards")
        return content
    finally:
        clock.cancel()
        connection.close()


def shut(connected: socket.socket) -> None:
    """End all waiting for it."""
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
