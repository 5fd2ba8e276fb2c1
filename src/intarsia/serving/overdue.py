"""A request's time ends also while the engine's thread is in a pass that takes longer, such as a long prompt's on a CPU."""

from __future__ import annotations

import threading
import time

from intarsia.serving.jobs import Job
from intarsia.serving.requests import DeadlineExceeded, Failed

PATIENCE = 0.2
"""Seconds that the engine's own thread has, which drops what is late between two passes."""


def too_late() -> Failed:
    """The end of a request whose time is over. A new one each time: an exception keeps where it was raised."""
    return Failed(DeadlineExceeded("the request's time was over before it was answered"))


class Overdue:
    """A thread that tells those whose time is over; the engine's own drops their work when it comes to it."""

    def __init__(self, lock: threading.Condition, jobs: set[Job]) -> None:
        """lock: the engine's; jobs: those that are under way, looked at under the lock."""
        self._lock, self._jobs = lock, jobs
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="intarsia-overdue", daemon=True)

    def start(self) -> None:
        """Watches from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Watches no longer."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(PATIENCE / 2):
            until = time.monotonic() - PATIENCE
            with self._lock:
                late = [job for job in self._jobs if job.deadline <= until and not job.cancelled]
                for job in late:
                    job.late = True
                    job.give_up()
            for job in late:
                job.tell(too_late())
