"""`GET /docs`: the addresses of this server as one plain page, made from its OpenAPI description, with nothing from elsewhere."""

from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Intarsia: addresses</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
code{font-size:.95em}dt{margin-top:1rem}dd{margin:0 0 0 1rem;white-space:pre-line}h2{margin-top:2rem;font-size:1.1rem}
</style><h1>Addresses</h1><p>Types, limits and defaults of every field are in
<a href="/openapi.json">openapi.json</a>, which API tools read.</p>"""


@router.get("/docs", response_class=HTMLResponse)
async def docs(request: Request) -> HTMLResponse:
    """Every address with what it is for."""
    groups: dict[str, list[str]] = {}
    for path, methods in request.app.openapi()["paths"].items():
        for method, said in methods.items():
            groups.setdefault(said["tags"][0], []).append(_entry(method, path, said))
    body = "".join(f"<h2>{escape(name)}</h2><dl>{''.join(entries)}</dl>" for name, entries in groups.items())
    return HTMLResponse(_HEAD + body, headers={"Content-Security-Policy": POLICY})


def _entry(method: str, path: str, said: dict[str, Any]) -> str:
    return f"<dt><code>{method.upper()} {escape(path)}</code><dd>{escape(said.get('description', ''))}"
