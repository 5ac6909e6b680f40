"""Refusals: what a client is told when it gets no answer, in OpenAI's form."""

from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
FAILED = "something failed in the server"
MAX_MESSAGE = 500  # characters


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


def told(text: str) -> str:
    """Short, and such as UTF-8 has: messages quote names that clients have made up."""
    return text[:MAX_MESSAGE].encode("utf-8", "backslashreplace").decode()


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route."""
    return {status: {"model": ErrorBody} for status in statuses}
