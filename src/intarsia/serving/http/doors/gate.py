"""The engine's side of one door: questions come in, answers go out, in lines of JSON, with as little work as can be."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from intarsia.errors import IntarsiaError
from intarsia.serving.http.classify import classify_row, refuse_if_nothing, tag_row
from intarsia.serving.http.classify_schemas import Text
from intarsia.serving.http.errors import ApiError, answer, api_error, body_of
from intarsia.serving.http.keys import Keys
from intarsia.serving.http.service import Service
from intarsia.serving.logs import note_bug
from intarsia.serving.requests import Answer, Event, Failed, Ticket

ASK = {"/v1/classify": classify_row, "/v1/tag": tag_row}
Found = Answer | IntarsiaError


class Gate(asyncio.Protocol):
    """What a door asks, and is told."""

    def __init__(
        self, service: Service, keys: Keys | None, opened: Callable[[], None], lost: Callable[[], None]
    ) -> None:
        """opened: called when the door is ready for connections. lost: when it has ended."""
        self._service, self._keys, self._opened, self._lost = service, keys, opened, lost
        self._loop = asyncio.get_running_loop()
        self._asked: dict[int, Asked] = {}
        self._said: list[Any] = []
        self._rest = b""
        self._ready = False
        self.silence = 0
        """How often it was asked whether it lives since it has last said anything."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] - as uvicorn has it
        """Tells the door which keys there are, not the keys themselves."""
        self._door = transport
        self._tell(self._keys and [(digest.hex(), role.value) for digest, role in self._keys.digests])

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits for what the door has asked."""
        for number in list(self._asked):
            self._forget(number)
        self._lost()

    def data_received(self, data: bytes) -> None:
        """Lines of the door: questions, or numbers of questions whose client has gone. The first one is empty: it is ready; later
        ones that are only say that it lives."""
        self.silence = 0
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if not self._ready:
                self._ready = True
                self._opened()
            for number, *question in said:
                if question:
                    self._ask(number, *question)
                else:
                    self._forget(number)

    def knock(self) -> None:
        """Asks whether the door lives."""
        self.silence += 1
        self._tell([])

    def end(self) -> None:
        """The door is to end when it has answered what has begun."""
        self._tell(None)

    def _ask(self, number: int, path: str, since: float, tasks: list[str], rows: list[Text]) -> None:
        asked = self._asked[number] = Asked(self, number, path, since, len(tasks) * len(rows))
        row_of = ASK[path]
        try:
            with self._service.engine.still():
                for place, (row, task) in enumerate((row, task) for row in rows for task in tasks):
                    asked.submit(self._service, place, row_of(task, row))
        except Exception as error:  # noqa: BLE001 - as in edge.py: the last place where it can become an answer
            note_bug("a bug", error)
            self._refuse(asked, ApiError(500, "something is wrong with the server; its log says where"))

    def _forget(self, number: int) -> None:
        asked = self._asked.pop(number, None)
        if asked is not None:
            asked.cancel()
            self._count(asked, 499)

    def answered(self, asked: "Asked") -> None:
        """Everything that was asked has its answer."""
        if asked.number not in self._asked:
            return
        try:
            refuse_if_nothing(asked.found)
        except ApiError as error:
            self._refuse(asked, error)
            return
        self._say(asked, 200, [list(map(_plain, asked.found))])

    def _refuse(self, asked: "Asked", error: ApiError) -> None:
        asked.cancel()
        response = answer(error, asked.path)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers]
        self._say(asked, error.status_code, [error.status_code, headers, bytes(response.body).decode()])

    def _say(self, asked: "Asked", status: int, message: list[Any]) -> None:
        """What is said in one turn of the loop leaves in one write."""
        del self._asked[asked.number]
        if not self._said:
            self._loop.call_soon(self._flush)
        self._said.append([asked.number, *message])
        self._count(asked, status)

    def _flush(self) -> None:
        said, self._said = self._said, []
        self._tell(said)

    def _tell(self, said: Any) -> None:
        self._door.write(json.dumps(said).encode() + b"\n")

    def _count(self, asked: "Asked", status: int) -> None:
        self._service.meters.answered("POST", asked.path, status, self._loop.time() - asked.since)


class Asked:
    """One request of a door's client: a question for each task and row."""

    __slots__ = ("_gate", "_left", "_loop", "_tickets", "found", "number", "path", "since")

    def __init__(self, gate: Gate, number: int, path: str, since: float, count: int) -> None:
        self._gate, self.number, self.path, self.since = gate, number, path, since
        self._loop = asyncio.get_running_loop()
        self._tickets: list[Ticket] = []
        self._left = count
        self.found: list[Any] = [None] * count

    def submit(self, service: Service, place: int, question: Any) -> None:
        """Asks the engine; its answer, or why there is none, will stand at this place."""

        def deliver(event: Event) -> None:
            service.post.send(self._loop, self, (place, event))  # on the engine's thread

        try:
            self._tickets.append(service.engine.submit(question, deliver))
        except IntarsiaError as error:
            self.put_nowait((place, error))
        else:
            service.note(question)

    def put_nowait(self, one: tuple[int, Event | IntarsiaError]) -> None:
        """An answer has come."""
        place, event = one
        self.found[place] = event.error if isinstance(event, Failed) else event
        self._left -= 1
        if not self._left:
            self._gate.answered(self)

    def cancel(self) -> None:
        """Nobody wants it any more."""
        for ticket in self._tickets:
            ticket.cancel()


def _plain(found: Found) -> Any:
    """As the door reads it."""
    if isinstance(found, IntarsiaError):
        return body_of(api_error(found))["error"]
    said = found.prediction
    return said.label, said.prediction, said.scores
