"""Servers of tiny models on free ports, in threads of the tests' process."""

import base64
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from threading import Thread
from typing import Any, NamedTuple
from urllib.error import HTTPError

import pytest
import torch
from openai import OpenAI
from PIL import Image

from mllm.decode.engine import Engine
from mllm.serve.app import LOOPBACK, create_app
from mllm.serve.limits import Gate, Limits
from mllm.serve.remote import Remote
from mllm.serve.run import listen, serve

WAIT = 60  # seconds, for machines under load


class Answered(NamedTuple):
    status: int
    body: dict[str, Any]
    headers: Any


class Served(NamedTuple):
    url: str
    gate: Gate
    engine: Engine

    def client(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=WAIT)

    def post(self, path: str, body: Any, **headers: str) -> Answered:
        """Any body; a dict becomes JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=WAIT) as answer:
                return Answered(answer.status, json.loads(answer.read()), answer.headers)
        except HTTPError as error:
            return Answered(error.code, json.loads(error.read()), error.headers)


@contextmanager
def running(
    model: Any,
    processor: Any,
    rows: int = 16,
    key: str | None = None,
    remote: Remote | None = None,
    name: str = "tiny",
    **limits: Any,
) -> Iterator[Served]:
    limits = Limits(**limits)
    engine, listener = Engine(model, processor, rows, limits.queue), listen("127.0.0.1", 0)
    gate = create_app(engine, name, limits, key, LOOPBACK, [picture("red"), picture("blue")], remote)
    thread = Thread(target=serve, args=(gate, listener))
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", gate, engine)
    finally:
        gate.closing = True
        thread.join(WAIT)
        engine.close(timeout=0)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def served(tiny_model) -> Iterator[Served]:
    """One for all tests that need nothing special."""
    with running(*tiny_model) as server:
        yield server


@pytest.fixture
def start() -> Iterator[Callable[..., Served]]:
    """start(model, processor, rows=16, key=None, remote=None, name="tiny", **limits): one for this test."""
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(running(*args, **options))


@pytest.fixture
def slow_talker(talkative) -> Any:
    """A model that never ends an answer, and takes at least 4 seconds for 200 ids of it."""
    talkative[0].lm_head.register_forward_hook(lambda *_: time.sleep(0.02))
    return talkative


@pytest.fixture
def drawing_model(make_tiny_model):
    """A model that always begins to draw."""
    model, processor = make_tiny_model()
    begin = torch.tensor([processor.boi_id])
    model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, begin, 100.0))
    return model, processor


def picture(color: str = "red", size: int = 32) -> Image.Image:
    return Image.new("RGB", (size, size), color)


def data_uri(image: Image.Image, format: str = "PNG") -> str:
    file = BytesIO()
    image.save(file, format)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def about(text: str, *uris: str) -> list[dict[str, Any]]:
    """One question of a user."""
    parts = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def until(condition: Callable[[], bool]) -> None:
    """Fails when it does not become true."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
