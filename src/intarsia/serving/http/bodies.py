"""Bodies: as they are, and bounded in bytes and in time while they come in, whatever their headers claim."""

import asyncio
import contextlib
import time
from dataclasses import dataclass
from email.message import Message

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from intarsia.serving.http.errors import ApiError

JSON_BYTES = 2 * 2**20
"""The largest body of a question."""
LINGER_BYTES, LINGER_SECONDS = 16 * 2**20, 2.0
"""How much of a body that is too large is read and dropped, so that its sender reads our answer, not a broken pipe."""


@dataclass(slots=True)
class Body:
    """What is left of one request's allowance. A route that takes more than a question widens `most` before it reads."""

    most: int
    until: float
    length: int | None
    taken: int = 0
    complete: bool = False


class BodyLimit:
    """ASGI: a body above its limit is a 413 and one that dawdles a 408, with the rest of it unread; a compressed one is a 415."""

    def __init__(self, app: ASGIApp, most: int = JSON_BYTES, seconds: float = 30.0) -> None:
        self.app, self.most, self.seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        declared, coding = headers.get("content-length", ""), headers.get("content-encoding", "").strip().lower()
        length = int(declared) if declared.isdecimal() else None
        body = Body(self.most, time.monotonic() + self.seconds, length)
        scope.setdefault("state", {})["body"] = body

        async def bounded() -> Event:
            if body.complete:  # only the end of the connection can come now, and that may take its time
                return await receive()
            if coding not in ("", "identity"):
                how = "compressed bodies are not taken; send the body as it is, without `Content-Encoding`"
                raise ApiError(415, how, {"Accept-Encoding": "identity"})
            if body.length is not None and body.length > body.most:
                raise await _too_large(body, receive)
            try:
                async with asyncio.timeout(body.until - time.monotonic()):  # wait_for would make a task of it
                    event = await receive()
            except TimeoutError:
                raise ApiError(408, "the body took too long to arrive", {"Connection": "close"}) from None
            body.taken += len(event.get("body", b""))
            body.complete = not event.get("more_body", False)
            if body.taken > body.most:
                raise await _too_large(body, receive)
            return event

        return await self.app(scope, bounded, send)


async def _too_large(body: Body, receive: Receive) -> ApiError:
    dropped = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while not body.complete and dropped < LINGER_BYTES:
                event = await receive()
                dropped += len(event.get("body", b""))
                body.complete = not event.get("more_body", False)
    return ApiError(413, f"the body is larger than {body.most:,d} bytes, the most that is taken here")


def widen(request: Request, most: int, seconds: float) -> None:
    """Allows this request a body of `most` bytes, which may take so many seconds."""
    body: Body = request.scope["state"]["body"]
    body.most, body.until = most, time.monotonic() + seconds


def media_type(request: Request) -> str:
    """`application/json` of `application/json; charset=utf-8`."""
    message = Message()
    message["content-type"] = request.headers.get("content-type", "")
    return message.get_content_type() if request.headers.get("content-type") else ""


async def json_only(request: Request) -> None:
    """A route's dependency: the body says that it is JSON. A page of another origin cannot say so without being asked."""
    kind = media_type(request)
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ApiError(415, "the body must be JSON; send it with `Content-Type: application/json`")
