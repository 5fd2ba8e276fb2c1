"""`GET /`: the page for people, and the files that it loads.

The files come from the package as they are: nothing is built, nothing comes from another host, and no data is in them, so
they need no key. The page asks the same addresses as every other client.
"""

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter, Request, Response

router = APIRouter(include_in_schema=False)

TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "common.js": "text/javascript; charset=utf-8",
    "load.js": "text/javascript; charset=utf-8",
    "results.js": "text/javascript; charset=utf-8",
    "tasks.js": "text/javascript; charset=utf-8",
    "trial.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # text that a server names can become text only, never markup
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept, but asked about each time: the addresses have no version, and a new server may have new files.
    "Cache-Control": "no-cache",
}


def _route(name: str) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint for one file: the file, or 304 where the browser's copy is still the same."""
    content = files("intarsia.serving.http").joinpath("page", name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'

    async def page_file(request: Request) -> Response:
        same = tag in request.headers.get("if-none-match", "")
        headers = {**HEADERS, "ETag": tag}
        if same:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=TYPES[name], headers=headers)

    return page_file


for _name in TYPES:
    _path = "/" if _name == "index.html" else f"/page/{_name}"
    router.add_api_route(_path, _route(_name), methods=["GET"], response_class=Response)
