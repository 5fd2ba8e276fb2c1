"""From the event loop to the engine's thread and back: questions go in, events come out, and who hangs up is forgotten."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence

from fastapi import Request

from intarsia.errors import IntarsiaError
from intarsia.serving.http.errors import ApiError
from intarsia.serving.http.service import Question, Service
from intarsia.serving.requests import Answer, Event, Failed, Finished, Generate, Piece, Ticket

Inbox = asyncio.Queue[tuple[int, Event | None]]
"""Events, each with its call's number; None: the client has gone."""


class Call:
    """One question at the engine, and where the events that come of it are put."""

    def __init__(self, service: Service, question: Question, number: int, inbox: Inbox | None) -> None:
        """inbox: several calls may have one. Raises what `Engine.submit` raises."""
        self._loop = asyncio.get_running_loop()
        self._post = service.post
        self.number, self.inbox = number, asyncio.Queue() if inbox is None else inbox
        self._ticket: Ticket = service.engine.submit(question, self._deliver)
        service.note(question)

    def _deliver(self, event: Event) -> None:
        """Runs on the engine's thread."""
        self._post.send(self._loop, self.inbox, (self.number, event))

    def cancel(self) -> None:
        """Ends the work, if any is left."""
        self._ticket.cancel()

    def gone(self) -> None:
        """The client has hung up: whoever waits for an event learns it now."""
        self.inbox.put_nowait((self.number, None))


async def _next(inbox: Inbox) -> tuple[int, Event]:
    """The next event. Raises the error of a failed one, and 499 where the client has gone."""
    number, event = await inbox.get()
    if event is None:
        raise ApiError(499, "the client hung up")
    if isinstance(event, Failed):
        raise event.error
    return number, event


def asked(service: Service, questions: Sequence[Question], inbox: Inbox | None = None) -> list[Call | IntarsiaError]:
    """Queues all of one request, on the same versions of their tasks. An error in the place of each that cannot be. inbox: of all;
    None: each has one."""
    calls: list[Call | IntarsiaError] = []
    try:
        with service.engine.still():
            for number, question in enumerate(questions):
                calls.append(_called(service, question, number, inbox))
    except BaseException:  # what was called before a bug
        _cancel(calls)
        raise
    return calls


async def answers(request: Request, calls: Sequence[Call | IntarsiaError]) -> list[Answer | IntarsiaError]:
    """Each call's answer, or why there is none."""
    with _unless_left(request, calls):
        return [call if isinstance(call, IntarsiaError) else await _answer(call) for call in calls]


def _called(service: Service, question: Question, number: int, inbox: Inbox | None) -> Call | IntarsiaError:
    try:
        return Call(service, question, number, inbox)
    except IntarsiaError as error:
        return error


async def _answer(call: Call) -> Answer | IntarsiaError:
    try:
        _, event = await _next(call.inbox)
    except IntarsiaError as error:
        return error
    assert isinstance(event, Answer)
    return event


@contextlib.contextmanager
def _unless_left(request: Request, calls: Sequence[Call | IntarsiaError]) -> Iterator[None]:
    """Who waits for one of the calls learns when the client hangs up; at the end all are cancelled."""

    def gone(_: object) -> None:
        for call in calls:
            if isinstance(call, Call):
                call.gone()

    left = asyncio.ensure_future(_left(request))
    left.add_done_callback(gone)
    try:
        yield
    finally:
        left.cancel()
        _cancel(calls)


def _cancel(calls: Sequence[Call | IntarsiaError]) -> None:
    for call in calls:
        if isinstance(call, Call):
            call.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def generated(service: Service, request: Request, questions: Sequence[Generate]) -> list[Finished]:
    """Each whole output, when all are there."""
    async with contextlib.aclosing(pieces(service, request, questions)) as events:
        found = {number: event async for number, event in events if isinstance(event, Finished)}
    return [found[number] for number in range(len(questions))]


async def pieces(
    service: Service, request: Request, questions: Sequence[Generate]
) -> AsyncGenerator[tuple[int, Piece | Finished]]:
    """The outputs as they come, each piece with its question's number; closing the iterator, hanging up, or the failure of one ends
    the work at the engine."""
    inbox: Inbox = asyncio.Queue()
    calls = asked(service, questions, inbox)
    if failed := [call for call in calls if isinstance(call, IntarsiaError)]:
        _cancel(calls)
        raise failed[0]
    with _unless_left(request, calls):
        left = len(calls)
        while left:
            number, event = await _next(inbox)
            assert isinstance(event, Piece | Finished)
            left -= isinstance(event, Finished)
            yield number, event
