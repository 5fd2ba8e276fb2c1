"""uvicorn's HTTP protocol, with an answer's head and body in one write: each is a system call, and a packet. And with an end to its
patience, which uvicorn has only for bodies that are read, and between an answer and the next byte."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from intarsia.serving.http import patience
from intarsia.serving.http.errors import ApiError, answer

MOST = 64 * 2**10
"""Bytes that are held back at most."""


class OneWrite(H11Protocol):
    """HTTP by h11."""

    _late: asyncio.TimerHandle | None = None
    """Runs while a request comes that nobody reads yet, or any more."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] - as uvicorn has it
        """Somebody has connected."""
        super().connection_made(_Joined(transport, self.loop))  # type: ignore[arg-type]
        self._keep(patience.SILENT_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._set_late(False)

    def handle_events(self) -> None:
        """Bytes have come, or the answer before them has left."""
        super().handle_events()
        theirs = self.conn.their_state
        if theirs is h11.IDLE:
            begun = bool(self.conn.trailing_data[0])
            self._set_late(begun)
            if begun:
                self._unset_keepalive_if_required()  # set with the answer before
            elif self.timeout_keep_alive_task is None:  # the rest of a body has come behind its answer
                self._keep(self.timeout_keep_alive)
        else:
            self._set_late(theirs is h11.SEND_BODY and self.conn.our_state is h11.DONE)

    def _keep(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _set_late(self, coming: bool) -> None:
        """One timer from the first byte to the last, however many come between."""
        if coming and self._late is None:
            self._late = self.loop.call_later(patience.HEAD_SECONDS, self._end)
        elif not coming and self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        if self.conn.our_state is h11.IDLE:  # not answered yet
            said = answer(ApiError(408, "the head took too long to arrive", {"Connection": "close"}), "")
            headers = [*self.server_state.default_headers, *said.raw_headers]
            for event in (
                h11.Response(status_code=408, headers=headers, reason=b"Request Timeout"),
                h11.Data(data=bytes(said.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        self.transport.close()


class _Joined:
    """A transport that holds what is written back until the loop turns."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        if not data:
            return
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)
        self._size += len(data)
        if self._size > MOST:
            self._flush()

    def _flush(self) -> None:
        held, self._held, self._size = self._held, [], 0
        if held:
            self._transport.write(held[0] if len(held) == 1 else b"".join(held))

    def get_write_buffer_size(self) -> int:
        return self._size + self._transport.get_write_buffer_size()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
