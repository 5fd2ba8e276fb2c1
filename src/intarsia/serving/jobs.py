"""A request on its way through the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from intarsia.rows import Row
from intarsia.serving.decoder import Writing
from intarsia.serving.logs import note_bug
from intarsia.serving.requests import Classify, Deliver, Event, Generate, Request
from intarsia.serving.scheduler import Item
from intarsia.serving.versions import Version


@dataclass(slots=True, eq=False)
class Job:
    """One request."""

    request: Request
    version: Version | None
    """None: the plain backbone."""
    deliver: Deliver
    deadline: float
    since: float = field(default_factory=time.monotonic)
    row: Row | None = None
    """Once it is read."""
    item: Item | None = None
    """While it is scheduled."""
    writing: Writing | None = None
    """While it generates."""
    text: str = ""
    """Generated so far, as the caller has it."""
    unsent: int = 0
    """New tokens that no piece has told of."""
    done: bool = False
    cancelled: bool = False
    late: bool = False
    """Its caller has been told that its time is over."""

    @property
    def kind(self) -> str:
        """As metrics call it."""
        return (
            "generate"
            if isinstance(self.request, Generate)
            else "classify"
            if isinstance(self.request, Classify)
            else "tag"
        )

    @property
    def task(self) -> str:
        """Whose turn it waits for."""
        return "" if self.version is None else self.version.name

    @property
    def key(self) -> str | None:
        """The task's name in the bank."""
        return None if self.version is None else self.version.key

    @property
    def texts(self) -> tuple[str, ...]:
        """What was sent."""
        request = self.request
        if isinstance(request, Classify):
            return request.texts
        if isinstance(request, Generate):
            return (request.prompt, *(message.get("content", "") for message in request.chat or ()))
        return request.words

    def scheduled(self, row: Row) -> Item:
        """Its place in a queue."""
        self.row = row
        self.item = Item(self.task, len(row.ids), time.monotonic(), self.deadline, self)
        return self.item

    def tell(self, event: Event) -> None:
        """Gives its caller an event. A caller's mistake must not end the engine."""
        try:
            self.deliver(event)
        except Exception as error:  # noqa: BLE001 - whatever it was
            note_bug("a caller's deliver failed", error)

    def give_up(self) -> None:
        """Nobody waits for it any more; the engine's thread drops it when it comes to it."""
        self.cancelled = True
        if self.item is not None:
            self.item.cancelled = True


def payloads(items: list[Item]) -> list[Any]:
    """Their jobs."""
    return [item.payload for item in items]
