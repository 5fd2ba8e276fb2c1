"""The stored tasks of a bank, on the device while there is room and in host memory beyond that."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch

from intarsia.errors import ConfigError
from intarsia.storage import Form, Stored, form_key
from intarsia.task import Task

_IDLE = 64
"""Forms that are kept without a task."""


class Shelf:
    """The stored tasks of a bank: on the device while there is room, the least recently used in host memory beyond that."""

    def __init__(self, device: torch.device, capacity: int | None) -> None:
        """capacity: bytes on the device; None: all that it has."""
        if capacity is not None and capacity < 1:
            raise ConfigError(f"TaskBank.capacity is in bytes and must be at least 1, got {capacity}")
        self.device, self.capacity = device, capacity
        self._forms: dict[tuple[object, ...], Form] = {}
        self._idle: OrderedDict[tuple[object, ...], None] = OrderedDict()
        """Forms that no task has now, the longest unused first: the next task of their shape finds the graphs that were made."""
        self._here: OrderedDict[str, Stored] = OrderedDict()
        """On the device, the least recently used first."""
        self._away: dict[str, Stored] = {}
        self.used = 0
        """Bytes on the device."""
        self.paged = 0
        """Bytes in host memory."""

    def store(self, task: Task, dtype: torch.dtype) -> Stored:
        """The task's tensors, packed in host memory; not yet on the shelf."""
        form = self._forms.get(form_key(task)) or Form(task)
        stored = Stored(task, form, form.pack(task, dtype))
        if self.capacity is not None and stored.nbytes > self.capacity:
            raise ConfigError(
                f"task {task.name!r} needs {stored.nbytes:,} bytes, and the bank's capacity is {self.capacity:,}; give more"
            )
        return stored

    def put(self, name: str, stored: Stored) -> None:
        """Under this name, on the device, which may page others out."""
        self._forms[stored.form.key] = stored.form
        self._idle.pop(stored.form.key, None)
        stored.form.users += 1
        self._away[name] = stored
        self.paged += stored.nbytes
        try:
            self.fetch([name])
        except BaseException:  # no memory
            self.take(name)
            raise

    def take(self, name: str) -> None:
        """Off the shelf."""
        stored = self._here.pop(name, None)
        if stored is not None:
            self.used -= stored.nbytes
        else:
            stored = self._away.pop(name)
            self.paged -= stored.nbytes
        stored.form.users -= 1
        if not stored.form.users:
            self._idle[stored.form.key] = None
            if len(self._idle) > _IDLE:
                del self._forms[self._idle.popitem(last=False)[0]]

    def here(self, name: str) -> bool:
        """Whether the task is on the device."""
        return name in self._here

    def fetch(self, names: Iterable[str]) -> None:
        """Brings tasks to the device, all at once; `batches` sees to it that they have room together."""
        wanted = dict.fromkeys(names)
        for name in wanted:
            if name in self._here:
                self._here.move_to_end(name)
        for name in wanted:
            if (stored := self._away.get(name)) is not None:
                self._make_room(stored.nbytes, wanted)
                stored.move(self.device)  # where that fails it is still away
                del self._away[name]
                self.paged -= stored.nbytes
                self._here[name] = stored
                self.used += stored.nbytes

    def _make_room(self, nbytes: int, wanted: Iterable[str]) -> None:
        while self.capacity is not None and self.used + nbytes > self.capacity:
            name = next(name for name in self._here if name not in wanted)
            stored = self._here[name]
            stored.move(torch.device("cpu"))
            self._away[name] = self._here.pop(name)
            self.used -= stored.nbytes
            self.paged += stored.nbytes

    def batches(self, rows: Sequence[int], names: Sequence[str | None]) -> Iterable[list[int]]:
        """Splits the rows of a pass, sorted by task, where their tasks have no room on the device together."""
        part: list[int] = []
        total, last = 0, None
        for row in rows:
            name = names[row]
            stored = None if name is None or name == last else self._here.get(name) or self._away.get(name)
            needed = 0 if stored is None else stored.nbytes
            if part and self.capacity is not None and total + needed > self.capacity:
                yield part
                part, total = [], 0
            part.append(row)
            total, last = total + needed, name
        yield part
