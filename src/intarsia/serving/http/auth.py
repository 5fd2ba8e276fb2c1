"""Who is let in: a request without a key of ours is refused before its body is read."""

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from intarsia.serving.http.errors import ApiError, answer
from intarsia.serving.http.keys import Keys, Role, presented

OPEN = frozenset({"/", "/health", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"})
"""What needs no key: the page and its files (they hold no data), the health checks, and the documentation."""


class KeyGate:
    """ASGI: refuses what needs a key and has none, before a byte of the body is read."""

    def __init__(self, app: ASGIApp, keys: Keys | None, open_paths: frozenset[str] = OPEN) -> None:
        self.app, self.keys, self.open_paths = app, keys, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.keys is not None:
            key = presented(Headers(scope=scope))
            role = None if key is None else self.keys.role(key)
            scope.setdefault("state", {})["role"] = role
            if role is None and scope["path"] not in self.open_paths:
                said = "this server needs an API key" if key is None else "this API key is not known here"
                how = "send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
                await answer(ApiError(401, f"{said}; {how}"), scope["path"])(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def admin(request: Request) -> None:
    """A route's dependency: only for a request with an admin's key. Runs before the body is read."""
    if request.app.state.keys is None:
        raise ApiError(
            403, "tasks cannot be changed over HTTP on this server; start it with --keys FILE and an admin key"
        )
    if request.scope["state"].get("role") is not Role.ADMIN:
        raise ApiError(403, "changing tasks needs an admin key; this one may only infer")
