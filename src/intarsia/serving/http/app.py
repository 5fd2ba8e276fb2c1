"""The application: routes, and the layers around them (edge, keys, bodies)."""

import asyncio
import time
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from intarsia.serving.engine import Engine
from intarsia.serving.http import admin, classify, docs, inference_protocol, openai, pages, status
from intarsia.serving.http.auth import OPEN, KeyGate
from intarsia.serving.http.bodies import BodyLimit
from intarsia.serving.http.edge import Edge
from intarsia.serving.http.errors import add_handlers
from intarsia.serving.http.keys import Keys
from intarsia.serving.http.metrics import Meters
from intarsia.serving.http.schemas import ErrorAnswer
from intarsia.serving.http.service import Service
from intarsia.serving.library import Library

UPLOAD_BYTES = 512 * 2**20
DESCRIPTION = """Many small tasks on one frozen backbone. Every refusal is {"error": {"message", "type", "code"}}; 429 comes
with Retry-After when the queue is full, 503 while the server starts, drains or has died."""


def create_app(
    engine: Engine,
    keys: Keys | None,
    *,
    library: Library | None = None,
    log_texts: bool = False,
    upload_bytes: int = UPLOAD_BYTES,
) -> FastAPI:
    """An ASGI application over an engine that the caller starts and drains.

    keys: who may ask, and who may change tasks; None: everyone may ask, and nobody may change a task. library: where
    uploaded tasks go; None: nowhere. log_texts: log the texts of the requests, which is otherwise never done.
    """
    app = FastAPI(
        title="Intarsia",
        version=version("intarsia"),
        description=DESCRIPTION,
        docs_url=None,  # FastAPI's own page fetches its scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        responses={"default": {"model": ErrorAnswer, "description": "A refusal"}},
    )
    meters = Meters()
    app.state.service = Service(
        engine=engine,
        library=library,
        meters=meters,
        log_texts=log_texts,
        upload_bytes=upload_bytes,
        since=int(time.time()),
    )
    app.state.keys = keys
    app.state.upload = asyncio.Lock()
    for module in (classify, openai, inference_protocol, status, admin, docs, pages):
        app.include_router(module.router)
    add_handlers(app)
    # The last one added is the outermost.
    app.add_middleware(inference_protocol.AssumeJson)
    app.add_middleware(BodyLimit)
    app.add_middleware(KeyGate, keys=keys, open_paths=OPEN | _paths(pages.router.routes))
    app.add_middleware(Edge, meters=meters)
    _secure(app)
    return app


def _paths(routes: list[Any]) -> frozenset[str]:
    return frozenset(route.path for route in routes)


def _secure(app: FastAPI) -> None:
    """Says in the OpenAPI description how a key is sent."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain()
            schema.setdefault("components", {})["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
            if app.state.keys is not None:
                schema["security"] = [{"bearer": []}, {"header": []}]
        return plain()

    app.openapi = openapi  # type: ignore[method-assign]
