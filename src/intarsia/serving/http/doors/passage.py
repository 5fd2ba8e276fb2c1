"""Open connections on their way from one process to another, each with the bytes that were read of it and not yet answered."""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable

MOST = 2**18
"""Bytes of one packet."""
Take = Callable[[bytes, socket.socket], None]


class Passage:
    """One end of a pair of sockets that keep packets apart."""

    def __init__(self, sock: socket.socket, take: Take) -> None:
        """take: gets every connection that comes."""
        self._sock, self._take = sock, take
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[bytes, socket.socket]] = deque()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST)  # the kernel makes it twice as much
        self._loop.add_reader(sock, self._read)

    @property
    def waiting(self) -> int:
        """Connections that have not yet left."""
        return len(self._waiting)

    def give(self, begun: bytes, connection: socket.socket) -> None:
        """Sends a connection away; here it is then closed."""
        self._waiting.append((begun, connection))
        if len(self._waiting) == 1:
            self._send()

    def close(self) -> None:
        """What has come is still taken; what has not left is closed."""
        self._read()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for _, connection in self._waiting:
            connection.close()
        self._waiting.clear()

    def _send(self) -> None:
        while self._waiting:
            begun, connection = self._waiting[0]
            try:
                # A packet has one byte more than was read: one without any would look like the end.
                socket.send_fds(self._sock, [b"-" + begun], [connection.fileno()])
            except BlockingIOError:
                self._loop.add_writer(self._sock, self._send)
                return
            except OSError:  # the other process is gone, which others notice
                pass
            self._waiting.popleft()
            connection.close()
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
            for file in files:
                connection = socket.socket(fileno=file)
                with contextlib.suppress(OSError):
                    connection.setblocking(False)
                self._take(packet[1:], connection)
