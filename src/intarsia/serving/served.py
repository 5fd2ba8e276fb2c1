"""The tasks that an engine serves: they come, change and go while others are asked."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.errors import IntarsiaError, TaskError, UnsupportedError, is_out_of_memory
from intarsia.memory import give_back
from intarsia.rows import RowReader, Tokens
from intarsia.serving.cards import Card, card_of
from intarsia.serving.requests import NoMemory, Unavailable, UnknownTask
from intarsia.serving.versions import Version
from intarsia.sites import Role
from intarsia.task import Task

State = Literal["starting", "ready", "draining", "dead"]


class ServedTasks:
    """Public names and the versions behind them, in one bank that belongs to one thread."""

    def __init__(self, backbone: Backbone, capacity: int | None) -> None:
        self.backbone = backbone
        self.state: State = "starting"
        self._bank = TaskBank(backbone, capacity=capacity)
        self._tokens = Tokens(backbone)
        self._current: dict[str, Version] = {}
        self._lock = threading.Condition()
        """Held for moments only: by submit, by the engine between two steps, by those who ask how it goes."""
        self._controls: deque[Callable[[], None]] = deque()
        """What the thread is to do between two steps."""
        self._changes = 0
        """How often the bank's tasks have changed."""
        self._changing = threading.Lock()
        self._thread: threading.Thread
        _measure_heads(backbone)

    def put(self, name: str, folder: Path) -> Card:
        """Serves the folder's task under this name; requests on an older version finish on it. TaskError when it cannot be,
        NoMemory where the device has no room for it."""
        try:
            return self._put(name, folder)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise NoMemory(
                f"{folder}: {self.backbone.device} has no memory left for this task; serve with a --capacity, and tasks that are "
                "not used wait in host memory"
            ) from None

    def _put(self, name: str, folder: Path) -> Card:
        with self._changing:
            task = Task.load(folder, self.backbone).requires_grad_(False)
            current = self._current.get(name)
            if current is None or current.task.version != task.version:
                try:
                    version = Version(name, task, RowReader(task, self._tokens, name))
                except IntarsiaError as error:
                    raise TaskError(f"{folder}: {error}") from None
                self._on_thread(lambda: self._swap(version))
                give_back()  # here, so that the engine's thread need not
            return self.card(name)

    def remove(self, name: str) -> None:
        """Takes a task out; requests that are under way finish. TaskError when there is none."""
        with self._changing:
            if name not in self._current:
                raise TaskError(f"no task named {name!r} is served")
            self._on_thread(lambda: self._drop(name))
            give_back()

    def cards(self) -> list[Card]:
        """All tasks, by name."""
        with self._lock:
            versions = [self._current[name] for name in sorted(self._current)]
        return [self._card(version) for version in versions]

    def serves(self, name: str) -> bool:
        """Whether a task goes by this name."""
        return name in self._current

    def card(self, name: str) -> Card:
        """One of them. UnknownTask where there is none."""
        version = self._current.get(name)
        if version is None:
            raise UnknownTask("there is no such task; GET /v1/tasks lists them")
        return self._card(version)

    def still(self) -> contextlib.AbstractContextManager[Any]:
        """No task changes while this is held, so that what is asked meanwhile is asked of the same versions. For moments only."""
        return self._lock

    def _card(self, version: Version) -> Card:
        assert version.card is not None, "made when it was put into the bank"
        return replace(version.card, resident=self._here(version))

    def _here(self, version: Version) -> bool:
        try:
            return self._bank.on_device(version.key)
        except TaskError:  # just taken out, by another thread
            return False

    def _swap(self, version: Version) -> None:
        self._bank.add(version.task, version.key)
        self._changes += 1
        version.task = self._bank.tasks[version.key]
        version.card = card_of(version.name, version.task, self._bank.nbytes(version.key), resident=True)
        with self._lock:
            old = self._current.get(version.name)
            self._current[version.name] = version
            if old is not None:
                self._retire(old)

    def _drop(self, name: str) -> None:
        with self._lock:
            self._retire(self._current.pop(name))

    def _retire(self, version: Version) -> None:
        version.retired = True
        if not version.users:
            self._evict(version)

    def _evict(self, version: Version) -> None:
        self._bank.discard(version.key)
        self._changes += 1

    def _on_thread(self, change: Callable[[], None]) -> None:
        """Runs a change on the engine's thread, between two steps, and waits for it."""
        done: Future[None] = Future()

        def run() -> None:
            try:
                change()
            except Exception as error:  # noqa: BLE001 - whoever waits for it gets it, and the others are answered
                done.set_exception(error)
            else:
                done.set_result(None)

        with self._lock:
            if self.state != "ready":
                raise Unavailable(f"the engine is {self.state}")
            self._controls.append(run)
            self._lock.notify_all()
        while True:
            try:
                return done.result(timeout=1.0)
            except TimeoutError:
                if not self._thread.is_alive():
                    raise Unavailable("the engine is dead") from None


def _measure_heads(backbone: Backbone) -> None:
    """Loading a prefix asks for the shape of keys and values, which is measured once, by running the model. That must be
    before others run it: a task is loaded on another thread than the model's."""
    for site in [site for site in backbone.sites if site.role is Role.KV][:1]:
        with contextlib.suppress(UnsupportedError):
            backbone.pretrained.heads(site)
