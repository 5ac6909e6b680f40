"""The work behind the routes: requests of clients -> requests to the engine -> answers, whole or as events."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from queue import Full
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from fastapi.responses import StreamingResponse
from PIL import Image
from starlette.requests import ClientDisconnect

from ..decode.engine import Engine, Handle
from ..decode.options import DrawingOptions
from ..decode.program import Chat, Drawing, Edit, Messages, Piece, Preview
from ..decode.sampling import NotFinite
from . import schema
from .errors import FAILED, Refusal
from .images import png_base64, read_bytes, uri_bytes
from .limits import RETRY, Limits, where
from .metrics import Metrics
from .remote import Remote, is_address

T = TypeVar("T")
log = logging.getLogger(__name__)

LATE = "this took longer than a request may: ask for less, or later"
THREADS = 2  # threads that read images and prompts and decode previews, beside the engine's own


class Job:
    """A request to the engine, as the event loop sees it."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.loop, self.queue = loop, asyncio.Queue()
        self.handle: Handle

    def receive(self, piece: Piece | None) -> None:
        """Called by a thread of the engine."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self.loop.call_soon_threadsafe(self.queue.put_nowait, piece)

    async def pieces(self, deadline: float) -> AsyncIterator[Piece]:
        """The pieces of the answer. Raises Refusal after `deadline`, a time of the monotonic clock, and for errors that
        the client can do something about; raises other errors of the engine as they are."""
        while True:
            try:
                piece = await asyncio.wait_for(self.queue.get(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise Refusal(504, LATE) from None
            if piece is None:
                break
            yield piece
        if isinstance(self.handle.error, NotFinite):
            raise Refusal(500, str(self.handle.error))
        if isinstance(self.handle.error, ValueError):
            raise Refusal(422, str(self.handle.error))
        if self.handle.error:
            raise self.handle.error
        if self.handle.cancelled:
            raise Refusal(503, "the server is shutting down", retry=RETRY)


class Service:
    """One model, under a name. Without `remote`, images at addresses are refused."""

    def __init__(self, engine: Engine, name: str, limits: Limits, metrics: Metrics, remote: Remote | None = None):
        self.engine, self.name, self.limits, self.metrics, self.remote = engine, name, limits, metrics, remote
        self.started, self.weights = int(time.time()), engine.model.weights_hash()
        self.size = f"{engine.processor.image_size}x{engine.processor.image_size}"
        self.threads = CapacityLimiter(THREADS)

    def model(self) -> schema.Model:
        context = self.engine.model.config.text_config.max_position_embeddings
        return schema.Model(
            id=self.name, created=self.started, image_size=self.size, context=context, weights=self.weights
        )

    def check_model(self, name: str | None) -> None:
        if name not in (None, self.name):
            raise Refusal(404, f"no model {name!r} here; there is {self.name!r}", "model", "model_not_found")

    async def submit(self, request: Request, make: Callable[[], list[Chat | Drawing | Edit]]) -> list[Job]:
        """`make` runs in a thread, as it reads images."""
        loop, jobs = asyncio.get_running_loop(), []

        def begin() -> None:
            if time.monotonic() > request.state.deadline:  # it has waited for a thread
                raise Refusal(504, LATE)
            for one in make():
                job = Job(loop)
                job.handle = self.engine.submit(one, job.receive)
                request.state.handles.append(job.handle)
                jobs.append(job)

        try:
            await to_thread.run_sync(begin, limiter=self.threads)
        except Full as error:
            raise Refusal(429, f"{error}: try again later", code="queue_full", retry=RETRY) from error
        except ValueError as error:
            raise Refusal(422, str(error)) from error
        return jobs

    async def pieces(self, job: Job, request: Request) -> AsyncIterator[Piece]:
        first = True
        async for piece in job.pieces(request.state.deadline):
            if first:
                self.metrics.first.observe(time.monotonic() - request.state.start)
            first = False
            yield piece

    async def all_pieces(self, jobs: Sequence[Job], request: Request) -> list[list[Piece]]:
        """All pieces of each job."""

        async def collect() -> list[list[Piece]]:
            pieces = []
            for job in jobs:
                pieces.append([piece async for piece in self.pieces(job, request)])
            return pieces

        return await unless_left(request, collect())

    # ---- chats

    async def chat(self, body: schema.ChatRequest, request: Request) -> schema.ChatResponse | StreamingResponse:
        self.check_model(body.model)
        seed = new_seed() if body.seed is None else body.seed
        check_messages(body.messages, self.limits)
        fetched = await self.fetch(body.messages, request)
        [job] = await self.submit(request, lambda: [self._chat(body, seed, fetched)])
        head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": self.name,
            "system_fingerprint": self.weights,
            "seed": seed,
        }
        if body.stream:
            return event_stream(self._chat_events(body, head, job, request))
        [pieces] = await self.all_pieces([job], request)
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        images = [piece for piece in pieces if isinstance(piece, Image.Image)]
        drawn = [schema.drawn(place, await self.encode(image)) for place, image in enumerate(images)]
        message = schema.Answer(content=text, images=drawn or None)
        choice = schema.Choice(message=message, finish_reason=job.handle.program.ended_by)
        return schema.ChatResponse(**head, choices=[choice], usage=schema.usage([job.handle]))

    async def fetch(self, messages: schema.Messages, request: Request) -> dict[str, bytes]:
        """Fetch the images at http(s) addresses: {address: bytes}."""
        names = {part.image_url.url: name for _, name, part in parts_of(messages) if not isinstance(part, str)}
        names = {url: name for url, name in names.items() if is_address(url)}
        if self.remote is None or not names:
            return {}
        return await unless_left(request, self.remote.fetch(names, request.state.deadline - time.monotonic()))

    def _chat(self, body: schema.ChatRequest, seed: int, fetched: Mapping[str, bytes]) -> Chat:
        return Chat(
            conversation(body.messages, fetched, self.limits.pixels),
            max_new_tokens=body.limit,
            temperature=body.temperature,
            top_p=body.top_p,
            seed=seed,
            drawing=DrawingOptions(cfg_scale=body.guidance) if "image" in body.modalities else None,
            stop=body.stops,
            previews=body.partial_images if body.stream else 0,
        )

    async def _chat_events(
        self, body: schema.ChatRequest, head: dict[str, Any], job: Job, request: Request
    ) -> AsyncIterator[dict[str, Any]]:
        head, drawn, previews = {**head, "object": "chat.completion.chunk"}, 0, 0

        def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
            return {**head, "choices": [choice]}

        yield chunk({"role": "assistant", "content": ""})
        async for piece in self.pieces(job, request):
            if isinstance(piece, str):
                yield chunk({"content": piece})
                continue
            image = schema.drawn(drawn, await self.encode(piece)).model_dump()
            if isinstance(piece, Preview):
                yield chunk({"partial_images": [{**image, "partial_image_index": previews, "progress": piece.done}]})
                previews += 1
            else:
                yield chunk({"images": [image]})
                drawn, previews = drawn + 1, 0
        yield chunk({}, job.handle.program.ended_by)
        if body.stream_options and body.stream_options.include_usage:
            yield {**head, "choices": [], "usage": schema.usage([job.handle]).model_dump()}

    # ---- drawings

    async def draw(self, body: schema.ImageRequest, request: Request) -> schema.ImageResponse | StreamingResponse:
        self._check_drawing(body)
        return await self._images(body, lambda seed: Drawing(body.prompt, seed=seed, **drawing_options(body)), request)

    async def edit(
        self, body: schema.EditRequest, files: Sequence[bytes], mask: bytes | None, request: Request
    ) -> schema.ImageResponse | StreamingResponse:
        """`files` are the pictures, the first of which is changed."""
        if not files:
            raise Refusal(422, "image: missing: send the picture that is to be changed", "image")
        if len(files) > self.limits.images:
            raise Refusal(422, f"image[]: {len(files)} pictures, at most {self.limits.images}: send fewer", "image[]")
        names = ["image"] if len(files) == 1 else [f"image[{place}]" for place in range(len(files))]

        def read() -> tuple[list[Image.Image], Image.Image | None]:
            pixels = self.limits.pixels
            images = [read_bytes(raw, name, pixels, still=True) for raw, name in zip(files, names, strict=True)]
            return images, None if mask is None else read_bytes(mask, "mask", pixels, still=True, alpha=True)

        images, read_mask = await to_thread.run_sync(read, limiter=self.threads)
        size = self.size if read_mask is None else size_of(images[0])
        self._check_drawing(body, size)
        options = {**drawing_options(body), "image_cfg_scale": body.image_guidance}
        return await self._images(body, lambda seed: Edit(images, body.prompt, read_mask, seed, **options), request)

    async def _images(
        self, body: schema.ImageRequest, make: Callable[[int], Drawing | Edit], request: Request
    ) -> schema.ImageResponse | StreamingResponse:
        """The images of the requests that `make` makes of seeds."""
        seed = new_seed() if body.seed is None else body.seed
        seeds = [(seed + place) % (schema.MAX_SEED + 1) for place in range(body.n)]
        jobs = await self.submit(request, lambda: [make(one) for one in seeds])
        if body.stream:
            kind = "image_edit" if isinstance(body, schema.EditRequest) else "image_generation"
            return event_stream(self._image_events(kind, seed, jobs[0], request))
        images = [pieces[-1] for pieces in await self.all_pieces(jobs, request)]
        data = [
            schema.Drawn(b64_json=await self.encode(image), seed=one, **answer_of(image))
            for image, one in zip(images, seeds, strict=True)
        ]
        usage = schema.image_usage([job.handle for job in jobs])
        return schema.ImageResponse(created=int(time.time()), data=data, size=size_of(images[0]), usage=usage)

    def _check_drawing(self, body: schema.ImageRequest, size: str | None = None) -> None:
        """`size` is the result's, if it is not the model's."""
        self.check_model(body.model)
        size = size or self.size
        if len(body.prompt) > self.limits.prompt:
            raise Refusal(422, f"the prompt has {len(body.prompt)} characters, at most {self.limits.prompt}", "prompt")
        if body.n > self.limits.n:
            raise Refusal(422, f"n {body.n} is above {self.limits.n}", "n")
        if body.n * body.candidates > self.limits.n:
            told = f"n {body.n} with {body.candidates} candidates each is more than {self.limits.n} drawings"
            raise Refusal(422, told, "candidates")
        if body.stream and body.n > 1:
            raise Refusal(422, f"n {body.n}: a stream has one image; send more requests", "n")
        if body.size not in ("auto", size):
            raise Refusal(422, f"this model draws {size}", "size")

    async def _image_events(self, kind: str, seed: int, job: Job, request: Request) -> AsyncIterator[dict[str, Any]]:
        about = {"output_format": "png", "quality": "auto", "background": "auto", "seed": seed}
        place = 0
        async for piece in self.pieces(job, request):
            image = {"b64_json": await self.encode(piece), "created_at": int(time.time()), **about}
            if isinstance(piece, Preview):
                about_it = {"size": self.size, "partial_image_index": place, "progress": piece.done}
                yield {"type": f"{kind}.partial_image", **image, **about_it}
                place += 1
            else:
                about_it = {"size": size_of(piece), "usage": schema.image_usage([job.handle]).model_dump()}
                yield {"type": f"{kind}.completed", **image, **about_it, **answer_of(piece)}

    async def encode(self, drawn: Image.Image | Preview) -> str:
        """PNG as base64."""

        def work() -> str:
            return png_base64(drawn.image(self.engine.model) if isinstance(drawn, Preview) else drawn)

        return await to_thread.run_sync(work, limiter=self.threads)


def drawing_options(body: schema.ImageRequest) -> dict[str, Any]:
    return {
        "cfg_scale": body.guidance,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "candidates": body.candidates,
        "steps": body.steps,
        "previews": body.partial_images if body.stream else 0,
    }


def size_of(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"


def answer_of(image: Image.Image) -> dict[str, str]:
    """Words of the model, with a picture that it left as it was."""
    return {"answer": image.info["answer"]} if "answer" in image.info else {}


def new_seed() -> int:
    """A random seed, small enough for JavaScript's numbers."""
    return secrets.randbelow(2**31)


async def unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. When the client leaves, `work` is cancelled and ClientDisconnect is raised."""

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(leaving())
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


def check_messages(messages: schema.Messages, limits: Limits) -> None:
    """Raises Refusal for too much text or too many images, and for messages that do not end with a user's."""
    if messages[-1].role != "user":
        told = f"messages[{len(messages) - 1}].role"
        raise Refusal(422, f"{told}: 'assistant' comes last, so there is nothing to answer: end with a user's", told)
    parts = [part for *_, part in parts_of(messages)]
    length = sum(len(part) for part in parts if isinstance(part, str))
    images = sum(not isinstance(part, str) for part in parts)
    if length > limits.prompt:
        raise Refusal(422, f"the messages have {length} characters, at most {limits.prompt}: shorten", "messages")
    if images > limits.images:
        raise Refusal(422, f"the messages have {images} images, at most {limits.images}: send fewer", "messages")


def conversation(messages: schema.Messages, fetched: Mapping[str, bytes], max_pixels: int) -> Messages:
    """Messages as the processor takes them. Raises Refusal for images that cannot be read."""
    read: Messages = [{"role": message.role, "content": []} for message in messages]
    for place, name, part in parts_of(messages):
        if isinstance(part, str):
            read[place]["content"].append({"type": "text", "text": part})
        else:
            url = part.image_url.url
            image = read_bytes(fetched[url] if url in fetched else uri_bytes(url, name), name, max_pixels)
            read[place]["content"].append({"type": "image", "image": image})
    return read


def parts_of(messages: schema.Messages) -> Iterator[tuple[int, str, str | schema.ImagePart | schema.DrawnImage]]:
    """Each part of the messages as (index of its message, its name in errors, part)."""
    for place, message in enumerate(messages):
        content = message.content or []
        for number, part in enumerate([schema.TextPart(text=content)] if isinstance(content, str) else content):
            name = f"messages[{place}].content[{number}].image_url.url"
            yield place, name, part.text if part.type == "text" else part
        for number, part in enumerate(getattr(message, "images", None) or []):
            yield place, f"messages[{place}].images[{number}].image_url.url", part


def event_stream(chunks: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    """Server-sent events. An error on the way becomes the last event, as the status has been sent already."""

    async def lines() -> AsyncIterator[str]:
        try:
            async for chunk in chunks:
                name = f"event: {chunk['type']}\n" if "type" in chunk else ""
                yield f"{name}data: {json.dumps(chunk)}\n\n"
        except Refusal as refusal:
            yield f"data: {json.dumps(refusal.body())}\n\n"
        except Exception as error:
            log.error("%s %s", type(error).__name__, where(error))
            yield f"data: {json.dumps(Refusal(500, FAILED).body())}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"cache-control": "no-store"})
