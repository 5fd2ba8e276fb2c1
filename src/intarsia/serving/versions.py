"""The tasks that are served: a public name, and the versions of it that are in the bank side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from intarsia.rows import RowReader
from intarsia.serving.cards import Card
from intarsia.task import Task

_NUMBERS = count()


@dataclass(slots=True, eq=False)
class Version:
    """One version of a task. It stays in the bank until it has been replaced and its last request is done."""

    name: str
    task: Task
    reader: RowReader
    card: Card | None = None
    """Once it is in the bank."""
    users: int = 0
    """Requests that began with it."""
    retired: bool = False
    key: str = field(init=False)
    """Its name in the bank, where the same content may stand twice: a task may come back before the last request on it is done."""

    def __post_init__(self) -> None:
        self.key = f"{self.name}@{self.task.version[:16]}#{next(_NUMBERS)}"

    @property
    def kind(self) -> str:
        """Of its head."""
        return self.reader.kind
