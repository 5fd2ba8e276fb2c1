"""Which waiting requests go into the next batch: bounded, fair between tasks, within a budget of tokens.

Deficit round robin (Shreedhar and Varghese 1995): each task with waiting rows gets a quantum of tokens in turn and sends rows as
far as they go, so that a task with a thousand rows does not hold up another's one. Order within a task is kept. No torch here.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

QUANTUM = 128
"""Tokens that a task may send in its turn: a usual row."""


@dataclass(slots=True, eq=False)
class Item:
    """One waiting row."""

    task: str
    tokens: int
    arrived: float
    """By the caller's clock, as all times here."""
    deadline: float
    payload: Any = None
    cancelled: bool = field(default=False)


class Scheduler:
    """The waiting rows of one sort of work. Not thread-safe: its owner locks."""

    def __init__(self, *, tokens: int, rows: int) -> None:
        """tokens: rows times the longest, of one batch; rows: most rows of one batch."""
        self.tokens, self.rows = tokens, rows
        self._tasks: OrderedDict[str, deque[Item]] = OrderedDict()
        """By task; the first is the next to have its turn."""
        self._credit: dict[str, int] = {}
        self._turn: str | None = None
        self._waiting = 0
        self._total = 0

    def __len__(self) -> int:
        return self._waiting

    @property
    def waiting_tokens(self) -> int:
        """Of all waiting rows."""
        return self._total

    def has(self, task: str) -> bool:
        """Whether rows of it wait."""
        return task in self._tasks

    def put(self, item: Item) -> None:
        """At the end of its task's queue."""
        self._tasks.setdefault(item.task, deque()).append(item)
        self._waiting += 1
        self._total += item.tokens

    def oldest(self) -> float | None:
        """When the row arrived that has waited longest; None: nothing waits."""
        return min((queue[0].arrived for queue in self._tasks.values()), default=None)

    def sweep(self, now: float) -> list[Item]:
        """Takes out what is cancelled or too late, and returns the latter."""
        late: list[Item] = []
        for task in list(self._tasks):
            queue = self._tasks[task]
            gone = [item for item in queue if item.cancelled or item.deadline <= now]
            if gone:
                late += [item for item in gone if not item.cancelled]
                self._count(gone)
                self._tasks[task] = deque(item for item in queue if not item.cancelled and item.deadline > now)
                self._drop_if_empty(task)
        return late

    def take(self, rows: int | None = None) -> list[Item]:
        """The next batch: at least one row if any waits, else []. rows: at most so many."""
        most = self.rows if rows is None else min(rows, self.rows)
        batch: list[Item] = []
        longest = 0
        full = False
        while self._tasks and not full:
            task, queue = next(iter(self._tasks.items()))
            if self._turn != task:  # a full batch may have cut its turn in two
                self._turn, self._credit[task] = task, self._credit.get(task, 0) + QUANTUM
            while queue and (queue[0].tokens <= self._credit[task] or self._alone(task)):
                item = queue[0]
                wider = max(longest, item.tokens)
                if batch and ((len(batch) + 1) * wider > self.tokens or len(batch) == most):
                    full = True
                    break
                queue.popleft()
                batch.append(item)
                longest = wider
                self._credit[task] = max(0, self._credit[task] - item.tokens)
            if not self._drop_if_empty(task) and not full:
                self._tasks.move_to_end(task)
                self._turn = None
        self._count(batch)
        return batch

    def empty(self) -> list[Item]:
        """Takes everything out."""
        everything = [item for queue in self._tasks.values() for item in queue]
        self._tasks.clear()
        self._credit.clear()
        self._turn = None
        self._waiting = self._total = 0
        return everything

    def _alone(self, task: str) -> bool:
        """Credit is only needed against others."""
        return len(self._tasks) == 1 and task in self._tasks

    def _count(self, gone: list[Item]) -> None:
        self._waiting -= len(gone)
        self._total -= sum(item.tokens for item in gone)

    def _drop_if_empty(self, task: str) -> bool:
        if self._tasks[task]:
            return False
        del self._tasks[task]
        self._credit.pop(task, None)
        self._turn = None if self._turn == task else self._turn
        return True
