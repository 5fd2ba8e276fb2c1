"""One client, in a door."""

import asyncio
import time
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING

from pydantic import ValidationError

from intarsia.serving.http import patience
from intarsia.serving.http.classify_schemas import MOST_ANSWERS, Texts
from intarsia.serving.http.doors.head import BLANK, LONGEST_BODY, START, Head, read_head

if TYPE_CHECKING:
    from intarsia.serving.http.doors.door import Door

LONGEST_HEAD = 16 * 2**10
"""Bytes of a head without end before it is somebody else's."""
WHOLE_SECONDS = 1.0
"""A request that takes longer from its first byte to its last is somebody else's."""
SPACE = memoryview(bytearray(64 * 2**10))
"""What comes in one go, of whatever connection."""
Headers = list[tuple[str, str]]


class Connection(asyncio.BufferedProtocol):
    """Reads requests one by one; the next is looked at when the answer before it has left."""

    def __init__(self, door: "Door", begun: bytes) -> None:
        """begun: what was read of the first request."""
        self._door, self._bytes = door, begun
        self._head: Head | None = None
        self._since = 0.0
        self.question: Texts | None = None
        """What is not yet answered."""
        self._last = False
        self._forget: Callable[[], None]
        self._writing = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] - as uvicorn has it
        """It is ours."""
        self._transport = transport
        transport.set_write_buffer_limits(high=0)  # so that `_writing` says whether anything is left to send
        self._door.connections.add(self)
        if self._door.ending:
            self.end()
        elif self._bytes:
            self._look()
        else:
            self._set_timer(self._transport.close, patience.SILENT_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has hung up, or we have."""
        self._door.connections.discard(self)
        self._set_timer(None)
        if self.question is not None:
            self._forget()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where bytes may be put; they are taken away at once."""
        return SPACE

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        if not self._bytes:  # who was silent is so no more
            self._set_timer(None)
        self._bytes += bytes(SPACE[:nbytes])
        if self.question is None and not self._writing:
            self._look()
        elif len(self._bytes) > LONGEST_BODY:  # who sends without waiting for answers waits now
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self._writing = True

    def resume_writing(self) -> None:
        """All has been sent."""
        self._writing = False
        if self.question is None:
            self._next()

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """The answer to what was asked."""
        last, self.question = self._last or self._door.ending, None
        more = "Connection: close\r\n" if last else ""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        self._transport.write(
            f"{_status_line(status)}date: {_date(int(time.time()))}\r\n{lines}{more}\r\n".encode("latin-1") + body
        )
        if last:
            self._transport.close()
            return
        if not self._bytes:
            self._set_timer(self._transport.close, patience.IDLE_SECONDS)
        if not self._writing:
            self._next()

    def end(self) -> None:
        """The door ends: so does what nobody waits for."""
        if self.question is None and self._head is None:
            self._transport.close()

    def _next(self) -> None:
        self._transport.resume_reading()
        if self._bytes and not self._transport.is_closing():
            self._look()

    def _look(self) -> None:
        """Asks what has come, when all of it has."""
        if self._head is None:
            if not BLANK.search(self._bytes):
                if len(self._bytes) > LONGEST_HEAD or self._bytes[: len(START)] != START[: len(self._bytes)]:
                    self._give()
                else:
                    self._wait()
                return
            self._head, self._since = read_head(self._bytes), time.monotonic()
            if self._head is None or not self._door.knows(self._head.key):
                self._give()
                return
        head = self._head
        end = head.size + head.length
        if len(self._bytes) < end:
            self._wait()
            return
        self._set_timer(None)
        try:
            question = Texts.model_validate_json(self._bytes[head.size : end])
        except ValidationError:
            question = None
        if question is None or len(question.tasks) * len(question.rows) > MOST_ANSWERS:
            self._give()
            return
        self._bytes, self._head = self._bytes[end:], None
        self.question, self._last = question, head.last
        self._forget = self._door.ask(self, head.path, self._since, question)

    def _wait(self) -> None:
        """For the rest of a request; one timer from its first byte to its last."""
        if self._timer is None:
            self._set_timer(self._give, WHOLE_SECONDS)

    def _give(self) -> None:
        """Somebody else goes on with this connection."""
        self._door.give(self._bytes, self._transport.get_extra_info("socket").dup())
        self._transport.abort()

    def _set_timer(self, then: Callable[[], None] | None, seconds: float = 0.0) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if then is None else asyncio.get_running_loop().call_later(seconds, then)


@lru_cache(maxsize=100)
def _status_line(status: int) -> str:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
