"""The outermost layer: every request is timed and counted, and no exception leaves it but as a 500 in our shape."""

import asyncio
import re
import time
from urllib.parse import unquote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from intarsia.serving.http.errors import ApiError, answer
from intarsia.serving.http.metrics import Meters
from intarsia.serving.logs import note_bug

ORIGIN = re.compile(rb"https?://[^/]*", re.IGNORECASE)


class Edge:
    """ASGI: counts answers by route and status; a bug's message may hold a text, so the log gets only its kind and place."""

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self.app, self.meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        scope = _from_root(scope)
        started, status = time.perf_counter(), 0
        # What GET would say, without the body, which uvicorn leaves out: who balances loads often asks so.
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(inner, receive, noted)
        except asyncio.CancelledError:
            # The server's time is over, and this request was still under way: no bug, whose traceback uvicorn would write.
            return None
        except ClientDisconnect:  # before its body was whole: there is nobody to answer
            return None
        except Exception as error:  # noqa: BLE001 - the last place where it can become an answer
            note_bug("a bug", error)
            if not status:
                bug = ApiError(500, "something is wrong with the server; its log says where")
                await answer(bug, scope["path"])(scope, receive, noted)
        finally:
            # The route's pattern, not the path: a path is the client's, and there is no end to them.
            route = getattr(inner.get("route"), "path", "none")
            self.meters.answered(scope["method"], route, status, time.perf_counter() - started)


def _from_root(scope: Scope) -> Scope:
    """As if `GET http://host/path` had asked for `/path`: RFC 9112 (3.2.2) has every server take the absolute form."""
    raw = scope.get("raw_path") or b""
    if scope["path"].startswith("/") or not (origin := ORIGIN.match(raw)):
        return scope
    raw = raw[origin.end() :] or b"/"
    return {**scope, "raw_path": raw, "path": unquote(raw.decode("ascii"))}
