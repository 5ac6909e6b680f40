"""Refusals: the errors that clients get, in OpenAI's form."""

from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
FAILED = "something failed in the server"
MAX_MESSAGE = 500  # characters


# Of pydantic's messages, those that speak of its classes, or give no way out; filled in from an error's `ctx`.
WORDS = {
    "extra_forbidden": "no such field here: leave it out",
    "union_tag_invalid": "its {discriminator} is {tag!r}, not one of {expected_tags}",
    "union_tag_not_found": "{discriminator} is missing",
    "model_attributes_type": "Input should be an object",
    "model_type": "Input should be an object",
    "dict_type": "Input should be an object",
    "list_type": "Input should be a list",
    "value_error": "{error}",
    "too_long": "{actual_length} items, at most {max_length}",
}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    error: ErrorDetail


class Refusal(Exception):
    """A status, with a message that says how to do better. `retry` is in seconds."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry: int | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry = status, message, param, code, retry

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        param = None if self.param is None else told(self.param)
        detail = ErrorDetail(message=told(self.message), type=kind, param=param, code=self.code)
        return ErrorBody(error=detail).model_dump()

    def response(self) -> JSONResponse:
        headers = {} if self.retry is None else {"retry-after": str(self.retry)}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def invalid(error: dict[str, Any], body: Any) -> Refusal:
    """One of pydantic's errors, by the place in the body that is wrong: messages[0].content[1].image_url.url."""
    words = error["msg"]
    if error["type"] in WORDS:
        words = WORDS[error["type"]].format(**error.get("ctx", {}))
    *loc, last = error["loc"][1:] or [""]
    place = path(loc, body) + f".{last}" if error["type"] == "missing" else path([*loc, last], body)
    place = place.strip(".")
    return Refusal(422, f"{place or 'the body'}: {words}", place or None)


def path(loc: Sequence[str | int], body: Any) -> str:
    """The way into the body. `loc` also names the members of unions, which are not in there, but may be called as
    fields are: the way that leads to the last of `loc` is the right one; where none does, the last is such a name."""
    found = None
    while loc and (found := way(loc, body)) is None:
        loc = loc[:-1]
    return found or ""


def way(loc: Sequence[str | int], body: Any) -> str | None:
    if not loc:
        return ""
    step, rest, found = loc[0], loc[1:], None
    if isinstance(body, list) and isinstance(step, int) and step < len(body) or isinstance(body, dict) and step in body:
        found = way(rest, body[step])
    if found is not None:
        return (f"[{step}]" if isinstance(step, int) else f".{step}") + found
    return way(rest, body) if rest else None


def told(text: str) -> str:
    """Short, and such as UTF-8 has: messages quote names that clients have made up."""
    return text[:MAX_MESSAGE].encode("utf-8", "backslashreplace").decode()


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route."""
    return {status: {"model": ErrorBody} for status in statuses}
