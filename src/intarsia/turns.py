"""One thread at a time: what is hooked on a model is there once for all of its calls."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeVar


class Turns:
    """A lock that its owner may take again. A copy, or what comes out of a pickle, is a new one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._behind: deque[Callable[[], None]] = deque()
        self.active: Any = None
        """The bank, if any, whose active task has the calls that nobody takes a turn for: the model's own."""

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        self._catch_up()
        self._lock.release()

    def when_free(self, action: Callable[[], None]) -> None:
        """Does it now, or when the call that is at work ends. Never waits, as garbage collection may ask for it anywhere."""
        self._behind.append(action)
        if self._lock.acquire(blocking=False):
            self._catch_up()
            self._lock.release()

    def _catch_up(self) -> None:
        while self._behind and not self._depth:
            self._behind.popleft()()

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
