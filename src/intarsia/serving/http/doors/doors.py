"""The doors of one server: they are started, given connections in turn, replaced where they die, and end with the server."""

import asyncio
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from intarsia.errors import IntarsiaError
from intarsia.serving.http.doors.gate import Gate
from intarsia.serving.http.doors.passage import Passage, Take
from intarsia.serving.http.keys import Keys
from intarsia.serving.http.service import Service, log

BACKLOG = 2048
AT_ONCE = 64
"""Connections that are accepted before others have their turn."""
AGAIN_SECONDS = 1.0
"""How long to wait where there was no file left for a connection, or where a door has died before it was ready."""
READY_SECONDS = 60.0
"""A door that is not ready by then is killed. It takes one or two, and the machine may be busy."""
KNOCK_SECONDS = 1.0
"""How often a door is asked whether it lives."""
SHY, HUNG = 3, 10
"""A door that was asked so often in vain gets no new connections; is killed. Asked, not seconds: where this process or the machine
stood still the next question comes late too, and what doors have said meanwhile is read before it. A door has a moment's work at a
time, so a busy one answers within milliseconds; ten seconds are for a machine with far more processes than cores, and no longer
than a client may wait."""


class Doors:
    """All doors. Belongs to the event loop of the engine's process."""

    def __init__(self, count: int, service: Service, keys: Keys | None, sock: socket.socket, take: Take) -> None:
        """sock: bound. take: gets the connections that no door answers."""
        self._count, self._service, self._keys, self._sock, self._take = count, service, keys, sock, take
        self._loop = asyncio.get_running_loop()
        self._started: set[_Started] = set()
        self._ready: list[_Started] = []
        self._turns = itertools.count()
        self._stillborn = False
        """Whether a door has ended before it was ready."""
        self.ending = False
        self._replacing: set[asyncio.Task[None]] = set()
        self._knocking: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Starts all, and listens when they are ready."""
        self._sock.listen(BACKLOG)
        self._sock.setblocking(False)
        await asyncio.gather(*(self._one() for _ in range(self._count)))
        while len(self._ready) < self._count:
            if self._stillborn:
                raise IntarsiaError("a door process has ended before it was ready; what it said is above")
            await asyncio.sleep(0.01)
        self._knock()

    def give(self, begun: bytes, connection: socket.socket) -> None:
        """Gives a connection to the next door, or to who takes what no door answers where none seems to live."""
        lively = [one for one in self._ready if one.gate.silence < SHY]
        if lively:
            lively[next(self._turns) % len(lively)].passage.give(begun, connection)
        else:
            self._take(begun, connection)

    @property
    def open(self) -> bool:
        """Whether a connection can be given to a door."""
        return bool(self._ready) and not self.ending

    async def end(self, until: float, hurried: Callable[[], bool]) -> None:
        """No new connections. The doors answer what has begun, until this time.monotonic(), or until somebody is in a hurry."""
        self.ending = True
        self._loop.remove_reader(self._sock)
        self._sock.close()  # else new ones would wait for an answer that nobody gives
        for one in list(self._started):
            if one in self._ready:
                one.gate.end()
            else:  # it has no connections yet, and may never be ready
                self._lost(one)
        while self._started and time.monotonic() < until and not hurried():
            await asyncio.sleep(0.01)
        self.kill()

    def kill(self) -> None:
        """Ends what is left, at once."""
        self.ending = True
        if self._knocking is not None:
            self._knocking.cancel()
        for one in list(self._started):
            self._lost(one)

    async def _one(self) -> None:
        gate, its_gate = socket.socketpair()
        passage, its_passage = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its_gate, its_passage:
            try:
                process = _process(its_gate.fileno(), its_passage.fileno())
            except OSError:
                gate.close()
                passage.close()
                raise
        one = _Started(process, Passage(passage, self._take, lambda: self._lost(one)))
        one.gate = Gate(self._service, self._keys, lambda: self._opened(one), lambda: self._lost(one))
        one.late = self._loop.call_later(
            READY_SECONDS, self._lost, one, f"is not ready after {READY_SECONDS:.0f} seconds"
        )
        self._started.add(one)
        await self._loop.create_connection(lambda: one.gate, sock=gate)

    def _opened(self, one: "_Started") -> None:
        one.late.cancel()
        self._ready.append(one)
        self._listen()

    def _knock(self) -> None:
        for one in list(self._ready):
            if one.gate.silence < HUNG:
                one.gate.knock()
            else:
                self._lost(one, "does not answer")
        self._knocking = self._loop.call_later(KNOCK_SECONDS, self._knock)

    def _lost(self, one: "_Started", hung: str | None = None) -> None:
        """hung: how one shows it that has not ended of itself."""
        if one not in self._started:
            return
        self._started.discard(one)
        stillborn = one not in self._ready and not hung
        if one in self._ready:
            self._ready.remove(one)
        left = one.close()
        if self.ending:
            for _, connection in left:
                connection.close()
            return
        if not self._ready:
            self._loop.remove_reader(self._sock)
        self._stillborn |= stillborn
        why = f"{hung} and is killed" if hung else "has ended"
        log.warning("door process %d %s; another one is started", one.process.pid, why)
        replacing = self._loop.create_task(self._replace(AGAIN_SECONDS if stillborn else 0.0))
        self._replacing.add(replacing)
        replacing.add_done_callback(self._replacing.discard)
        for begun, connection in left:
            self.give(begun, connection)

    async def _replace(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        while not self.ending:
            try:
                await self._one()
            except OSError as error:
                log.warning("no door process can be started: %s", error.strerror)
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                return

    def _listen(self) -> None:
        if self.open:
            self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("no connection can be accepted: %s", error.strerror)
                self._loop.remove_reader(self._sock)
                self._loop.call_later(AGAIN_SECONDS, self._listen)
                return
            connection.setblocking(False)
            self.give(b"", connection)


class _Started:
    """A door's process, and what connects us with it."""

    gate: Gate
    late: asyncio.TimerHandle
    """Runs until it is ready."""

    def __init__(self, process: subprocess.Popen[bytes], passage: Passage) -> None:
        self.process, self.passage = process, passage

    def close(self) -> list[tuple[bytes, socket.socket]]:
        """The process has said goodbye, or is to end at once. Returns the connections that it has not taken."""
        self.late.cancel()
        left = self.passage.close()
        self.process.kill()
        self.process.wait()
        return left


def _process(*files: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "intarsia.serving.http.doors.door", *map(str, files)],
        pass_fds=files,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        process_group=0,  # a terminal's Ctrl-C is not for it
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},  # it finds what we found
    )
