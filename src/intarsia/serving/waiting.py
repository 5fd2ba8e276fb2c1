"""What waits for the engine: rows to classify and prompts to go on from, each sort with places of its own, so that long texts leave
rows their room."""

from __future__ import annotations

from collections import Counter

from intarsia.serving.limits import Limits
from intarsia.serving.requests import Busy
from intarsia.serving.scheduler import Item, Scheduler

SPARE = 0.25
"""Of the places, so many more are for tasks that have none."""


class Queue:
    """The requests of one sort, from when they are taken until their turn. Not thread-safe: its owner locks."""

    def __init__(self, places: int, *, tokens: int, rows: int) -> None:
        """places: for so many; tokens, rows: of one batch."""
        self.places = places
        self.scheduler = Scheduler(tokens=tokens, rows=rows)
        self._reading: Counter[str] = Counter()
        """By task: taken, and not yet tokens."""

    def __len__(self) -> int:
        return self._reading.total() + len(self.scheduler)

    def enter(self, task: str, now: float) -> None:
        """Takes one. Busy where all places are taken; but a task that has none gets a spare one, whoever fills the others."""
        has = task in self._reading or self.scheduler.has(task)
        if len(self) >= self.places + (0 if has else int(SPARE * self.places)):
            oldest = self.scheduler.oldest()
            # Whoever comes after as long as the first has waited finds all of these gone.
            waited = 0.0 if oldest is None else now - oldest
            raise Busy(f"{len(self)} requests wait already; try again later", retry_after=max(1.0, waited))
        self._reading[task] += 1

    def leave(self, task: str) -> None:
        """One that was taken could not be read."""
        self._reading[task] -= 1
        if not self._reading[task]:
            del self._reading[task]

    def put(self, item: Item) -> None:
        """One that was taken has been read."""
        self.leave(item.task)
        self.scheduler.put(item)


class Waiting:
    """Both sorts."""

    def __init__(self, limits: Limits) -> None:
        self.rows = Queue(limits.queue, tokens=limits.batch_tokens, rows=limits.batch_rows)
        self.texts = Queue(limits.queue, tokens=limits.decode_tokens, rows=limits.decode_rows)

    def __len__(self) -> int:
        return len(self.rows) + len(self.texts)

    def sweep(self, now: float) -> list[Item]:
        """Takes out what is cancelled or too late, and returns the latter."""
        return self.rows.scheduler.sweep(now) + self.texts.scheduler.sweep(now)
