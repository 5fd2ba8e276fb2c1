"""Events on their way from the engine's thread to an event loop."""

import asyncio
import threading
from typing import Any, Protocol


class Queue(Protocol):
    """Where events go; an asyncio.Queue is one."""

    def put_nowait(self, item: Any, /) -> None:
        """Never waits."""
        ...


class Post:
    """What comes while a loop is busy is delivered together: each waking of the loop is a system call, on the engine's thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.AbstractEventLoop, list[tuple[Queue, Any]]] = {}

    def send(self, loop: asyncio.AbstractEventLoop, queue: Queue, event: object) -> None:
        """Puts an event into a queue of the loop; from any thread, in order."""
        with self._lock:
            first = loop not in self._waiting
            self._waiting.setdefault(loop, []).append((queue, event))
        if first:
            try:
                loop.call_soon_threadsafe(self._deliver, loop)
            except RuntimeError:  # it has been closed: nobody waits any more
                self._taken(loop)

    def _deliver(self, loop: asyncio.AbstractEventLoop) -> None:
        for queue, event in self._taken(loop):
            queue.put_nowait(event)

    def _taken(self, loop: asyncio.AbstractEventLoop) -> list[tuple[Queue, Any]]:
        with self._lock:
            return self._waiting.pop(loop, [])
