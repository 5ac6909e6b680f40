"""The app: routes, the page, and how errors look."""

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from PIL import Image
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..decode.engine import Engine
from . import schema
from .errors import FAILED, Refusal, documented, invalid
from .images import png
from .limits import LEFT, Gate, Limits
from .metrics import Metrics
from .remote import Remote
from .service import Service

WORK = documented(400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 504)
LOOK = documented(401, 403)
MULTIPART = "multipart/form-data"
EVENT = {"type": "object", "properties": {name: {"type": "string"} for name in ("event", "data")}, "required": ["data"]}
EVENTS: dict[str, Any] = {"content": {"text/event-stream": {"schema": EVENT}}}
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def create_app(
    engine: Engine,
    name: str,
    limits: Limits | None = None,
    key: str | None = None,
    hosts: set[str] | None = None,
    examples: Sequence[Image.Image] = (),
    remote: Remote | None = None,
) -> Gate:
    """ASGI for a model that is called `name`. `key`: of all but page and health. `hosts`: the names it answers to
    (None: any). `examples`: images to try, on the page. `remote` fetches images at addresses (None: refused)."""
    limits, metrics = limits or Limits(), Metrics(engine)
    # The pages of documentation that FastAPI has would load scripts from elsewhere.
    app = FastAPI(title="mllm", docs_url=None, redoc_url=None)
    service = Service(engine, name, limits, metrics, remote)
    gate = Gate(app, limits, metrics, limits.queue + engine.max_rows, key, hosts)
    add_errors(app)
    add_api(app, service, gate)
    add_page(app, service, examples, key is not None)
    return gate


def add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return refusal.response()

    @app.exception_handler(RequestValidationError)
    async def wrong(request: Request, error: RequestValidationError) -> Response:
        first, sent = error.errors()[0], request.headers.get("content-type", "missing")
        if first["type"] == "json_invalid":
            place = json.JSONDecodeError(first["ctx"]["error"], error.body, first["loc"][1])
            return Refusal(422, f"the body is not JSON: {place}").response()
        if isinstance(error.body, bytes):
            told = f"the header content-type is {sent}: send content-type: application/json"
            return Refusal(422, told, "content-type").response()
        return invalid(first, error.body).response()

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, (UnicodeDecodeError, RecursionError)):
            told = "UTF-8" if isinstance(error.__cause__, UnicodeDecodeError) else "JSON of reasonable depth"
            return Refusal(error.status_code, f"the body is not {told}").response()
        response = Refusal(error.status_code, error.detail).response()
        response.headers.update(error.headers or {})  # which methods there are, after 405
        return response

    @app.exception_handler(ClientDisconnect)
    async def left(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=LEFT)  # nobody gets it, the log has it

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        return Refusal(500, FAILED).response()  # the gate logs it


def add_api(app: FastAPI, service: Service, gate: Gate) -> None:
    @app.post("/v1/chat/completions", response_model=schema.ChatResponse, responses={**WORK, 200: EVENTS})
    async def chat(body: schema.ChatRequest, request: Request) -> Any:
        """An answer; with `stream`, server-sent events of its parts."""
        return await service.chat(body, request)

    @app.post("/v1/images/generations", response_model=schema.ImageResponse, responses={**WORK, 200: EVENTS})
    async def draw(body: schema.ImageRequest, request: Request) -> Any:
        """Images of a prompt; with `stream`, server-sent events: previews, and the image."""
        return await service.draw(body, request)

    @app.post(
        "/v1/images/edits",
        response_model=schema.ImageResponse,
        responses={**WORK, 200: EVENTS},
        openapi_extra={"requestBody": {"required": True, "content": {MULTIPART: {"schema": edit_schema()}}}},
    )
    async def edit(request: Request) -> Any:
        """A picture as a prompt changes it; the rest is as for drawings."""
        return await service.edit(*await edit_form(request, service.limits), request)

    @app.get("/v1/models", responses=LOOK)
    async def models() -> schema.Models:
        return schema.Models(data=[service.model()])

    @app.get("/v1/models/{model:path}", responses={**LOOK, **documented(404)})
    async def model(model: str) -> schema.Model:
        service.check_model(model)
        return service.model()

    @app.get("/health", responses=documented(403, 503))
    async def health() -> schema.Health:
        """Status 503 when requests are not answered: while the server shuts down, and when its engine has stopped, or
        is stuck in a step that takes longer than a request may."""
        if gate.closing or not service.engine.alive:
            raise Refusal(503, "the server is shutting down" if gate.closing else "the engine has stopped")
        busy = service.engine.busy_for
        if busy > service.limits.seconds:
            raise Refusal(503, f"the engine is stuck: its step takes {busy:.0f} seconds so far")
        return schema.Health()

    @app.get("/metrics", response_class=Response, responses={**LOOK, 200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def edit_schema() -> dict[str, Any]:
    """Of the form of an edit. All values of a form are text, so that of its fields is told in words."""
    fields = schema.EditRequest.model_json_schema()
    words = {
        name: {"type": "string", "description": field.get("description", "")}
        for name, field in fields["properties"].items()
    }
    return {
        "type": "object",
        "properties": {**words, **schema.FILES},
        "required": ["prompt"],
        "additionalProperties": False,
    }


async def edit_form(request: Request, limits: Limits) -> tuple[schema.EditRequest, list[bytes], bytes | None]:
    """The fields, the pictures and the mask of a form. Raises Refusal, or RequestValidationError as JSON bodies do."""
    sent = request.headers.get("content-type", "missing")
    if sent.partition(";")[0].strip().lower() != MULTIPART:
        told = f"the header content-type is {sent}: send a form, content-type: {MULTIPART}"
        raise Refusal(422, told, "content-type")
    async with request.form(max_files=limits.images + 1, max_part_size=limits.body) as form:
        fields: dict[str, Any] = {}
        files: dict[str, list[bytes]] = {name: [] for name in schema.FILES}
        for name, value in form.multi_items():
            is_file = not isinstance(value, str)
            if is_file != (name in files):
                told = "no such file here: leave it out" if is_file else "not a file: send one, with a file name"
                raise Refusal(422, f"{name}: {told}", name)
            if is_file:
                files[name].append(await value.read())
            elif name in fields:
                raise Refusal(422, f"{name}: sent twice, send it once", name)
            else:
                fields[name] = schema.form_value(name, value)
    for name in ("image", "mask"):
        if len(files[name]) > 1:
            told = "several pictures are called image[]" if name == "image" else "send one"
            raise Refusal(422, f"{name}: {len(files[name])} files: {told}", name)
    try:
        body = schema.EditRequest.model_validate(fields)
    except ValidationError as error:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(errors, body=fields) from error
    return body, files["image"] + files["image[]"], next(iter(files["mask"]), None)


def add_page(app: FastAPI, service: Service, examples: Sequence[Image.Image], needs_key: bool) -> None:
    folder = files(__package__) / "page"
    about = {"model": escape(service.name), "examples": len(examples), "key": int(needs_key), "n": service.limits.n}
    add_file(app, "/", Template((folder / "index.html").read_text()).substitute(about).encode(), "text/html")
    add_file(app, "/page.js", (folder / "page.js").read_bytes(), "text/javascript")
    add_file(app, "/page.css", (folder / "page.css").read_bytes(), "text/css")
    for number, image in enumerate(examples):
        add_file(app, f"/examples/{number}.png", png(image), "image/png")


def add_file(app: FastAPI, path: str, content: bytes, media_type: str) -> None:
    @app.get(path, include_in_schema=False)
    async def file() -> Response:
        return Response(content, media_type=media_type, headers={"cache-control": "no-cache"})
