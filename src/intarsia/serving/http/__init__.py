"""The engine over HTTP: `create_app(engine, keys, library=...)` is an ASGI application, `Keys` the API keys that open it.

Names are imported when first used: a process that only speaks HTTP (`doors`) loads neither the engine nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intarsia.serving.http.app import create_app
    from intarsia.serving.http.keys import Keys

__all__ = ["Keys", "create_app"]

_HOMES = {"Keys": "intarsia.serving.http.keys", "create_app": "intarsia.serving.http.app"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'intarsia.serving.http' has no attribute {name!r}")
