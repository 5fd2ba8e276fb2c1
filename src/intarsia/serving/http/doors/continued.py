"""A connection that a door gave away, in the engine's process: uvicorn's protocol goes on where the door has stopped."""

import asyncio
from typing import Any

import h11

from intarsia.serving.http.doors.doors import Doors
from intarsia.serving.http.doors.head import read_head
from intarsia.serving.http.doors.passage import MOST
from intarsia.serving.http.onewrite import OneWrite

IDLE = {h11.CLIENT: h11.IDLE, h11.SERVER: h11.IDLE}


class Continued(OneWrite):
    """Goes back to a door with the next question that is as a door takes them."""

    def __init__(self, doors: Doors, begun: bytes, **more: Any) -> None:
        """begun: what was read of the first request. more: uvicorn's."""
        super().__init__(**more)
        self._doors, self._begun = doors, begun

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] - as uvicorn has it
        """It is here."""
        super().connection_made(transport)
        if self._begun:  # none would be its end
            super().data_received(self._begun)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._between() and self._doors.open and len(data) < MOST and read_head(data):
            self._unset_keepalive_if_required()
            self._doors.give(data, self.transport.get_extra_info("socket").dup())
            self.transport.abort()
        else:
            super().data_received(data)

    def _between(self) -> bool:
        """The last answer has left, and nothing of the next request has come before."""
        return (
            self.conn.states == IDLE and not self.conn.trailing_data[0] and not self.transport.get_write_buffer_size()
        )
