"""The engine over HTTP: `create_app(engine, keys, library=...)` is an ASGI application, `Keys` the API keys that open it."""

from intarsia.serving.http.app import create_app
from intarsia.serving.http.auth import Keys

__all__ = ["Keys", "create_app"]
