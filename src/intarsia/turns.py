"""One thread at a time: what is hooked on a model is there once for all of its calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeVar


class Turns:
    """A lock that its owner may take again. A copy, or what comes out of a pickle, is a new one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        return Turns, ()


class _Backbone(Protocol):
    turns: Turns


class _Owner(Protocol):
    backbone: _Backbone


_F = TypeVar("_F", bound=Callable[..., Any])


def in_turn(method: _F) -> _F:
    """Threads that call this method, or another such one over the same backbone, wait for one another."""

    @wraps(method)
    def waiting(self: _Owner, *args: Any, **kwargs: Any) -> Any:
        with self.backbone.turns:
            return method(self, *args, **kwargs)

    return waiting  # type: ignore[return-value]
