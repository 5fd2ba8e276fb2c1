"""Open connections on their way from one process to another, each with the bytes that were read of it and not yet answered."""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable

MOST = 2**18
"""Bytes of one packet."""
Take = Callable[[bytes, socket.socket], None]
_GIVEN, _TAKEN = b"-", b"+"
"""How a packet begins: with a connection, and what was read of it; or without one, to say that the oldest one has come."""


class Passage:
    """One end of a pair of sockets that keep packets apart.

    A connection stays open here until the other end has said that it has come. Else it would be lost where the other process dies
    with the packet unread, as one that hangs does, and one that has just died and is still taken for alive: the kernel may close a
    dead process's clients, who connect again, before it closes this.
    """

    def __init__(self, sock: socket.socket, take: Take, gone: Callable[[], None]) -> None:
        """take: gets every connection that comes. gone: called where nothing can leave as the other process is gone."""
        self._sock, self._take, self._gone = sock, take, gone
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[bytes, socket.socket | None]] = deque()
        self._sent: deque[tuple[bytes, socket.socket]] = deque()
        """Of which the other end has said nothing yet."""
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST)  # the kernel makes it twice as much
        self._loop.add_reader(sock, self._read)

    @property
    def waiting(self) -> int:
        """Packets that have not yet left."""
        return len(self._waiting)

    def give(self, begun: bytes, connection: socket.socket) -> None:
        """Sends a connection away; here it is then closed."""
        self._put(begun, connection)

    def close(self) -> list[tuple[bytes, socket.socket]]:
        """What has come is still taken. Returns what the other end has not taken."""
        self._read()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        left = [*self._sent, *((begun, connection) for begun, connection in self._waiting if connection is not None)]
        self._sent.clear()
        self._waiting.clear()
        return left

    def _put(self, begun: bytes, connection: socket.socket | None) -> None:
        self._waiting.append((begun, connection))
        if len(self._waiting) == 1:
            self._send()

    def _send(self) -> None:
        while self._waiting:
            begun, connection = self._waiting[0]
            try:
                if connection is None:
                    self._sock.send(_TAKEN)
                else:
                    socket.send_fds(self._sock, [_GIVEN + begun], [connection.fileno()])
            except BlockingIOError:
                self._loop.add_writer(self._sock, self._send)
                return
            except ConnectionError:
                self._loop.remove_writer(self._sock)
                self._gone()
                return
            except OSError:  # the kernel has no room for it
                if connection is not None:
                    connection.close()
            else:
                if connection is not None:
                    self._sent.append((begun, connection))
            self._waiting.popleft()
        self._loop.remove_writer(self._sock)

    def _read(self) -> None:
        while True:
            try:
                packet, files, _, _ = socket.recv_fds(self._sock, MOST, 1)
            except BlockingIOError:
                return
            except OSError:
                packet, files = b"", []
            if not packet:
                self._loop.remove_reader(self._sock)
                return
            if packet == _TAKEN:
                self._sent.popleft()[1].close()
                continue
            self._put(b"", None)
            for file in files:
                connection = socket.socket(fileno=file)
                with contextlib.suppress(OSError):
                    connection.setblocking(False)
                self._take(packet[1:], connection)
