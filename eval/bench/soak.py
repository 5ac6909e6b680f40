"""Load on a server for some minutes: errors, latency, memory, and what sharing a batch is worth.

Clients chat about an image, stream, and draw, each in its own order; one request in ten hangs up. Then the same
requests go one at a time and 8 at a time, in turns, for the ratio.
"""

import base64
import http.client
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from resource import getpagesize
from typing import Any

CHAT, DRAW = "/v1/chat/completions", "/v1/images/generations"
HANG_UP = 0.1  # share of requests
WARM_UP = 0.2  # share of the time
TOGETHER = 8
CLIENT_TIMEOUT = 300  # seconds


@dataclass
class Load:
    """What has been seen; `seconds` by kind of request."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"chat": [], "stream": [], "draw": []})
    errors: list[str] = field(default_factory=list)
    left: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)


def request_of(kind: str, seed: int, image: str) -> tuple[str, dict[str, Any]]:
    """Path and body."""
    if kind == "draw":
        things = ("dog", "red car", "clock", "giraffe")
        return DRAW, {"prompt": f"a photo of a {things[seed % len(things)]}", "seed": seed}
    questions = ("what is this?", "how many things are there?", "describe the image.")
    text = {"type": "text", "text": questions[seed % len(questions)]}
    parts = [{"type": "image_url", "image_url": {"url": image}}, text]
    options = {"max_tokens": 32, "seed": seed, "stream": kind == "stream", "modalities": ["text"]}
    return CHAT, {"messages": [{"role": "user", "content": parts}], **options}


def send(port: int, path: str, body: dict[str, Any], leave: bool = False) -> str | None:
    """-> what went wrong. `leave`: hang up before the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CLIENT_TIMEOUT)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        if leave:
            return None
        answer = connection.getresponse()
        content = answer.read()
    except OSError as error:
        return f"{path}: {error}"
    finally:
        connection.close()
    return f"{path}: {answer.status} {content[:200]!r}" if answer.status != 200 or b'"error"' in content else None


def client(port: int, number: int, end: float, image: str, load: Load) -> None:
    rng = random.Random(number)
    while time.monotonic() < end:
        kind, leave = rng.choice(list(load.seconds)), rng.random() < HANG_UP
        start = time.monotonic()
        error = send(port, *request_of(kind, rng.randrange(1000), image), leave)
        if error:
            load.errors.append(error)
        elif leave:
            load.left += 1
        else:
            load.seconds[kind].append(time.monotonic() - start)


def put_load(port: int, pid: int, clients: int, seconds: float, image: str) -> Load:
    load, start = Load(), time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        done = [pool.submit(client, port, number, start + seconds, image, load) for number in range(clients)]
        while not all(one.done() for one in done):
            load.memory.append((time.monotonic() - start, resident_mb(pid)))
            time.sleep(1)
    for one in done:
        one.result()
    return load


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * getpagesize() / 2**20


def growth(memory: Sequence[tuple[float, float]], seconds: float) -> float:
    """Of the median memory, from the first quarter after warm-up to the last quarter."""
    sizes = [size for when, size in memory if when >= WARM_UP * seconds]
    quarter = max(1, len(sizes) // 4)
    return quantile(sizes[-quarter:], 0.5) / quantile(sizes[:quarter], 0.5) - 1


def compare_batches(port: int, rounds: int, image: str) -> dict[str, float]:
    """Requests a second one at a time and 8 at a time, of the same requests, in turns."""
    kinds = ("chat", "draw") * (TOGETHER // 2)
    taken: dict[int, float] = {1: 0.0, TOGETHER: 0.0}
    for number in range(rounds):
        bodies = [request_of(kind, number * TOGETHER + place, image) for place, kind in enumerate(kinds)]
        for clients in taken:
            start = time.monotonic()
            with ThreadPoolExecutor(clients) as pool:
                errors = [error for error in pool.map(lambda body: send(port, *body), bodies) if error]
            taken[clients] += time.monotonic() - start
            if errors:
                raise ValueError(f"a request failed: {errors[0]}")
    alone, together = (rounds * TOGETHER / seconds for seconds in taken.values())
    return {"one_at_a_time": alone, "eight_at_a_time": together, "ratio": together / alone}


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def report(load: Load, seconds: float, clients: int, ratio: dict[str, float]) -> dict[str, Any]:
    count = sum(map(len, load.seconds.values()))
    latency = {
        kind: {"count": len(times), "p50": quantile(times, 0.5), "p95": quantile(times, 0.95)}
        for kind, times in load.seconds.items()
    }
    return {
        "minutes": seconds / 60,
        "clients": clients,
        "errors": load.errors[:20],
        "error_count": len(load.errors),
        "hung_up": load.left,
        "requests_per_second": count / seconds,
        "latency_seconds": latency,
        "memory_mb": {"most": max(size for _, size in load.memory), "growth": growth(load.memory, seconds)},
        "requests_per_second_compared": ratio,
    }


@contextmanager
def server(model: str) -> Iterator[tuple[int, int]]:
    """-> (port, process id) of a server of its own; raises ValueError when it does not start, or does not end well."""
    words = ["--model", model, "--port", "0", "--timeout", str(CLIENT_TIMEOUT)]
    command = [sys.executable, "-m", "scripts.serve", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=2, text=True) as process:
        try:
            line = process.stdout.readline()
            if not line:
                raise ValueError(f"the server did not start: status {process.wait()}")
            yield int(line.split("http://127.0.0.1:")[1].split(":")[0]), process.pid
            process.send_signal(signal.SIGTERM)
            if process.wait(CLIENT_TIMEOUT):
                raise ValueError(f"the server ended with status {process.returncode}")
        finally:
            process.kill()


def example(port: int) -> str:
    """The page's first example image, as a data URI."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=CLIENT_TIMEOUT)) as connection:
        connection.request("GET", "/examples/0.png")
        return f"data:image/png;base64,{base64.b64encode(connection.getresponse().read()).decode()}"


def soak(model: str, clients: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Figures of a server of its own, on a free port of this machine. Raises ValueError when it does not start, does
    not end well, or refuses a request of the comparison."""
    with server(model) as (port, pid):
        image = example(port)
        load = put_load(port, pid, clients, seconds, image)
        ratio = compare_batches(port, rounds, image)
    return report(load, seconds, clients, ratio)
