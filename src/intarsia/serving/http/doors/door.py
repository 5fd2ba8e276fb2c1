"""A door's process. It ends with the one that started it, or when that one says so."""

import asyncio
import gc
import json
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from intarsia.serving.http.classify_schemas import Results, TaskAnswer, Texts
from intarsia.serving.http.doors.connection import Connection, Headers
from intarsia.serving.http.doors.passage import Passage
from intarsia.serving.http.keys import Keys, Role
from intarsia.serving.http.schemas import ErrorBody
from intarsia.serving.logs import note_bug

ALIVE = b"[]\n"
"""No question: we are here."""


class Door(asyncio.Protocol):
    """Its connections, and its end of the talk with the gate, in lines of JSON. The gate's first one is the keys."""

    def __init__(self, passage: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self.ending = False
        """Answers are the last of their connections."""
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._passage = Passage(passage, self._come, lambda: None)  # the gate's end is ours
        self._coming: set[asyncio.Task[Any]] = set()
        self._keys: Keys | None = None
        self._opened = False
        self._number = 0
        self._asked: dict[int, Connection] = {}
        self._said: list[Any] = []
        self._rest = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] - as uvicorn has it
        """The gate is there."""
        self._gate = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine's process is gone."""
        if not self.ended.done():
            self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Lines of the gate: answers, the number of the question and what `_answer` reads; none, to hear whether we live; or null,
        the order to end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if not self._opened:
                self._open(said)
            elif said is None:
                self._ending = self._loop.create_task(self._end())
            elif not said:
                self._gate.write(ALIVE)
            else:
                for number, *found in said:
                    connection = self._asked.pop(number, None)
                    if connection is not None and connection.question is not None:
                        connection.answer(*_answer(connection.question, *found))

    def knows(self, key: str | None) -> bool:
        """Whether who has this key may ask."""
        return self._keys is None or (key is not None and self._keys.role(key) is not None)

    def ask(self, connection: Connection, path: str, since: float, question: Texts) -> Callable[[], None]:
        """The connection will be told the answer. Returns what says that it no longer waits."""
        self._number += 1
        number = self._number
        self._asked[number] = connection
        self._say([number, path, since, question.tasks, question.rows])

        def forget() -> None:
            if self._asked.pop(number, None):
                self._say([number])

        return forget

    def give(self, begun: bytes, sock: socket.socket) -> None:
        """Gives a connection to the engine's process."""
        self._passage.give(begun, sock)

    def _open(self, keys: list[tuple[str, str]] | None) -> None:
        if keys is not None:
            self._keys = Keys(tuple((bytes.fromhex(digest), Role(role)) for digest, role in keys))
        self._opened = True
        self._gate.write(ALIVE)

    def _come(self, begun: bytes, sock: socket.socket) -> None:
        made = self._loop.create_task(self._loop.connect_accepted_socket(lambda: Connection(self, begun), sock))
        self._coming.add(made)
        made.add_done_callback(self._coming.discard)

    def _say(self, message: list[Any]) -> None:
        """What is said in one turn of the loop leaves in one write."""
        if not self._said:
            self._loop.call_soon(self._flush)
        self._said.append(message)

    def _flush(self) -> None:
        said, self._said = self._said, []
        self._gate.write(json.dumps(said).encode() + b"\n")

    async def _end(self) -> None:
        self.ending = True
        for connection in list(self.connections):
            connection.end()
        await asyncio.sleep(0.01)  # what is on its way to us comes
        while self.connections or self._coming or self._passage.waiting:
            await asyncio.sleep(0.01)
        self._gate.close()


def _answer(question: Texts, *found: Any) -> tuple[int, Headers, bytes]:
    """Status, headers and body. found: status, headers and body of a refusal; or the answers of all tasks to all rows, each (label,
    prediction, scores), or what went wrong."""
    if len(found) == 3:
        status, headers, body = found
        return status, headers, body.encode()
    body = Results.of(question, map(_task_answer, question.tasks * len(question.rows), *found)).body().encode()
    return 200, [("content-length", str(len(body))), ("content-type", "application/json")], body


def _task_answer(task: str, said: Sequence[Any] | dict[str, Any]) -> TaskAnswer:
    return TaskAnswer(task=task, error=ErrorBody(**said)) if isinstance(said, dict) else TaskAnswer.of(task, *said)


async def _serve(gate: socket.socket, passage: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: note_bug("a door failed", context.get("exception") or Exception()))
    door = Door(passage)
    await loop.create_connection(lambda: door, sock=gate)
    await door.ended


def main() -> None:
    """The arguments are the two sockets' files."""
    # Who tells all processes at once does not mean that we cut answers off.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    gate, passage = (socket.socket(fileno=int(file)) for file in sys.argv[1:])
    gc.freeze()
    asyncio.run(_serve(gate, passage))


if __name__ == "__main__":
    main()
