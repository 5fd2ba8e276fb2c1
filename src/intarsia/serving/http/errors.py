"""Every refusal in one shape, OpenAI's: {"error": {"message", "type", "code"}}, the message one line. Under /v2, where the Open
Inference Protocol says another, {"error": message}: its clients read nothing else.

Nothing that a client sent is repeated in a message of ours, so that an answer or a log never carries a text.
"""

import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from intarsia.errors import IntarsiaError
from intarsia.serving.http.schemas import NOT_TEXT

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "timeout_error",
    507: "storage_error",
}
TRIED = ("body", "str", "constrained-str")


class ApiError(HTTPException):
    """A refusal with its status and one line. An HTTPException, so that the framework lets it through while reading."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message, headers)


def api_error(error: IntarsiaError) -> ApiError:
    """An error of the engine or the library as a refusal: its own status where it has one, else 422."""
    wait = getattr(error, "retry_after", None)
    headers = None if wait is None else {"Retry-After": str(max(1, math.ceil(wait)))}
    return ApiError(getattr(error, "status", 422), one_line(str(error)), headers)


def body_of(error: HTTPException) -> dict[str, Any]:
    """{"error": {...}}, as JSON has it."""
    status = error.status_code
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": one_line(str(error.detail)), "type": kind, "code": status}}


def answer(error: HTTPException, path: str) -> JSONResponse:
    """The response of a refusal. path: of the request."""
    headers = dict(error.headers or {})
    if error.status_code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = body_of(error)
    if path == "/v2" or path.startswith("/v2/"):
        body = {"error": body["error"]["message"]}
    return JSONResponse(body, error.status_code, headers)


def one_line(message: str) -> str:
    """No line breaks, no lone surrogates: what JSON and a log line can hold."""
    return " ".join(message.encode("utf-8", "replace").decode("utf-8").split())


def add_handlers(app: FastAPI) -> None:
    """All errors of the framework and of ours in the one shape."""

    @app.exception_handler(RequestValidationError)
    def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        malformed = any(item["type"] == "json_invalid" for item in errors)
        return answer(ApiError(400 if malformed else 422, _explain(errors)), request.url.path)

    @app.exception_handler(IntarsiaError)
    def _ours(request: Request, error: IntarsiaError) -> JSONResponse:
        return answer(api_error(error), request.url.path)

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error, ApiError):
            return answer(error, request.url.path)
        headers = dict(error.headers or {})
        if error.status_code == 405 and (allowed := _allowed(request)):
            headers["Allow"] = allowed
        return answer(ApiError(error.status_code, _framework(request, error), headers), request.url.path)


def _allowed(request: Request) -> str:
    """The methods of this address; the framework names only those of its first route."""
    path = getattr(request.scope.get("route"), "path", "")
    return ", ".join(method.upper() for method in request.app.openapi()["paths"].get(path, ()))


def _framework(request: Request, error: HTTPException) -> str:
    """What the framework means, in a line that says what to do."""
    if error.status_code == 404:
        return "there is no such address here; GET /docs lists them"
    if error.status_code == 405:
        return f"{request.method} is not for this address; GET /docs lists what is"
    cause = error.__cause__
    if isinstance(cause, UnicodeDecodeError):
        return "the body is not UTF-8; send JSON in UTF-8"
    if isinstance(cause, RecursionError):
        return "the JSON of the body is nested too deep"
    if error.status_code == 400:
        return "the body cannot be read as JSON"
    return str(error.detail)


def _explain(errors: Sequence[Any]) -> str:
    """The first thing that is wrong, and where; never the value that came."""
    first = errors[0]
    if isinstance(first.get("input"), list) and first["type"] == "string_type":
        # Where a string or a list may be: what is wrong with the list says more than that it is no string.
        place = first["loc"][:-1]
        first = next((one for one in errors[1:] if one["loc"][: len(place)] == place), first)
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first.get('ctx', {}).get('error', 'it ends too soon')} at {first['loc'][-1]}"
    # pydantic adds the branch of a union that it tried, such as `str` or `list[str]`.
    parts = [str(part)[:40] for part in first["loc"] if part not in TRIED and "[" not in str(part)]
    message = {
        "missing": "is missing",
        "extra_forbidden": "is not known here; leave it out",
        "string_unicode": NOT_TEXT,
    }.get(first["type"], first["msg"].removeprefix("Value error, "))
    return f"{'.'.join(parts) or 'the body'}: {message}"
