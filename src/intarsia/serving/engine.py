"""The engine: one thread that owns bank and model, and everybody else's way to it.

    submit  ->  reading (its own thread)  ->  scheduler  ->  batch or decoder  ->  deliver

The thread takes turns: what is to be changed about the tasks, a batch of rows to classify, a step of the texts that are written.
Tasks come and go while others are asked: a request finishes on the version that it began with.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from intarsia.backbone import Backbone
from intarsia.serving.ahead import Ahead
from intarsia.serving.answering import Answering
from intarsia.serving.counts import Counts
from intarsia.serving.jobs import Job, payloads
from intarsia.serving.limits import Limits
from intarsia.serving.logs import note_bug
from intarsia.serving.overdue import Overdue, too_late
from intarsia.serving.reader import check_kind, read
from intarsia.serving.requests import (
    BadRequest,
    DeadlineExceeded,
    Deliver,
    Event,
    Failed,
    Generate,
    Request,
    RequestError,
    Ticket,
    TooLarge,
    Unavailable,
    UnknownTask,
)
from intarsia.serving.served import ServedTasks
from intarsia.serving.versions import Version
from intarsia.serving.waiting import Queue, Waiting

SWEEP_SECONDS = 0.02
"""How exact deadlines of waiting rows are."""


class Engine(ServedTasks):
    """Answers requests on one backbone."""

    def __init__(self, backbone: Backbone, *, limits: Limits | None = None, capacity: int | None = None) -> None:
        """capacity: bytes of task tensors on the device; more are paged to host memory."""
        super().__init__(backbone, capacity)
        self.limits = limits or Limits()
        self.counts = Counts()
        self._answering = Answering(self._bank, self.limits, self._finish)
        self._ahead = Ahead(self._bank, self.limits, self._answering.decoder)
        self._waiting = Waiting(self.limits)
        self._jobs: set[Job] = set()
        self._overdue = Overdue(self._lock, self._jobs)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="intarsia-reader")
        self._thread = threading.Thread(target=self._run, name="intarsia-engine", daemon=True)
        self._stopped = False
        self._swept = 0.0

    def start(self) -> None:
        """The thread begins."""
        self.state = "ready"
        self._thread.start()
        self._overdue.start()

    def prepare(self) -> None:
        """Makes what requests to the tasks of now would wait for: on a GPU, graphs of batches of usual sizes. Requests may come
        meanwhile, and go before. For tasks that come later it is made while there is nothing else to do."""
        self._ahead.wanted = True
        self._on_thread(self._ahead.ready.clear)
        while self._thread.is_alive() and not self._ahead.ready.wait(timeout=1.0):
            pass

    def drain(self, seconds: float) -> None:
        """Refuses new requests, finishes those that are under way, and stops; what is left after `seconds` is told so. The
        backbone is then as it was."""
        with self._lock:
            if self.state == "ready":
                self.state = "draining"
            self._lock.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=max(0.0, seconds))
        with self._lock:
            left, self._stopped = list(self._jobs), True
            self._lock.notify_all()
        for job in left:
            self._finish(job, Failed(Unavailable("the server stops, and the request took too long")))
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self._bank.detach()
        self._overdue.stop()
        self._reader.shutdown(wait=False, cancel_futures=True)

    # -- requests ---------------------------------------------------------------------------------------------------------

    def submit(self, request: Request, deliver: Deliver) -> Ticket:
        """Takes a request from any thread. Its events come through `deliver`, the last one ends it. Raises a RequestError
        where it cannot be taken."""
        limits = self.limits
        with self._lock:
            if self.state != "ready":
                raise Unavailable(f"the engine is {self.state}; try again later")
            version = self._version(request)
            now = time.monotonic()
            deadline = request.deadline if request.deadline is not None else now + limits.seconds
            job = Job(request, version, deliver, deadline, now)
            if (size := sum(len(text.encode("utf-8", "replace")) for text in job.texts)) > limits.text_bytes:
                raise TooLarge(f"the text has {size:,} bytes, at most {limits.text_bytes:,} are taken")
            if isinstance(request, Generate) and request.sampling.max_tokens > limits.new_tokens:
                raise BadRequest(
                    f"max_tokens is {request.sampling.max_tokens}, at most {limits.new_tokens} are written"
                )
            self._queue(job).enter(job.task, now)
            self._jobs.add(job)
            if version is not None:
                version.users += 1
        self._reader.submit(self._read, job)
        return Ticket(lambda: self._cancel(job))

    def _version(self, request: Request) -> Version | None:
        if request.task is None:
            self._answering.check_writes()
            return None
        version = self._current.get(request.task)
        if version is None:
            raise UnknownTask("there is no such task; GET /v1/tasks lists them")
        check_kind(request, version)
        if isinstance(request, Generate):
            self._answering.check_writes()
        return version

    def _read(self, job: Job) -> None:
        """On the reading thread."""
        try:
            item = job.scheduled(read(job, self._tokens))
        except RequestError as error:
            self._unread(job, error)
            return
        except Exception as error:  # noqa: BLE001 - a tokenizer may raise whatever it likes
            note_bug("reading a request failed", error)
            self._unread(job, BadRequest(f"the tokenizer cannot read this text: {type(error).__name__}"))
            return
        with self._lock:
            self.counts.tokens_in += item.tokens
            self._queue(job).put(item)
            self._lock.notify_all()

    def _unread(self, job: Job, error: RequestError) -> None:
        with self._lock:
            self._queue(job).leave(job.task)
        self._finish(job, Failed(error))

    def _queue(self, job: Job) -> Queue:
        return self._waiting.texts if isinstance(job.request, Generate) else self._waiting.rows

    def _cancel(self, job: Job) -> None:
        with self._lock:
            job.give_up()
            self._lock.notify_all()

    def _finish(self, job: Job, event: Event | None) -> None:
        """The end of a request; event None: nobody waits for it."""
        with self._lock:
            if job.done:
                return
            job.done = True
            self._jobs.discard(job)
            outcome = "cancelled" if event is None else "failed" if isinstance(event, Failed) else "ok"
            if job.late or (isinstance(event, Failed) and isinstance(event.error, DeadlineExceeded)):
                outcome = "late"
            self.counts.requests[job.kind, outcome] += 1
            self.counts.seconds.add(time.monotonic() - job.since)
            if job.version is not None:
                job.version.users -= 1
                if job.version.retired and not job.version.users:
                    version = job.version
                    self._controls.append(lambda: self._evict(version))
                    self._lock.notify_all()
        if event is not None and not job.cancelled:
            job.tell(event)

    def gauges(self) -> dict[str, Any]:
        """How it goes, for metrics and the page."""
        with self._lock:
            resident = sum(self._here(version) for version in self._current.values())
            return {
                "queue": len(self._waiting),
                "running": self._answering.running,
                "resident": resident,
                "paged": len(self._current) - resident,
                "bytes_device": self._bank.device_bytes,
                "bytes_host": self._bank.host_bytes,
                "tokens_in": self.counts.tokens_in,
                "tokens_out": self.counts.tokens_out,
                "requests": dict(self.counts.requests),
                "seconds": self.counts.seconds,
                "rows": self.counts.rows,
            }

    # -- the thread -------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # noqa: BLE001 - the thread ends here, and everybody is told
            note_bug("the engine has died", error)
            self.state = "dead"
        finally:
            with self._lock:
                left = list(self._jobs)
                if self.state != "draining":
                    self.state = "dead"
            for job in left:
                self._finish(job, Failed(Unavailable("the engine is dead")))

    def _turn(self) -> bool:
        """One round; False: there will be no other."""
        self._change()
        self._sweep()
        batch = self._batch()
        if batch:
            self.counts.rows.add(len(batch))
            self._answering.classify(batch)
        answered = not batch and self._answering.answer()
        wrote = self._answering.write(self._joining(), self.counts)
        if batch or answered or wrote:
            return not self._stopped
        idle = not self._jobs and not self._controls and self.state == "ready"
        if idle and self._ahead.step(self._changes, self._current.values()):
            return not self._stopped
        with self._lock:
            if self._stopped or (self.state == "draining" and not self._jobs):
                return False
            if not self._controls:
                self._lock.wait(timeout=self._patience())
        return True

    def _change(self) -> None:
        while True:
            with self._lock:
                if not self._controls:
                    return
                change = self._controls.popleft()
            change()

    def _sweep(self) -> None:
        """Ends what is cancelled or too late."""
        now = time.monotonic()
        if now - self._swept < SWEEP_SECONDS:
            return
        self._swept = now
        with self._lock:
            late = payloads(self._waiting.sweep(now))
            gone = [job for job in self._jobs if job.cancelled and job.writing is None and job.item is not None]
        for job in gone:
            self._finish(job, None)
        late += self._answering.sweep(now)
        for job in late:
            self._finish(job, too_late())

    def _batch(self) -> list[Job]:
        """The next rows to classify, when it is time."""
        rows = self._waiting.rows.scheduler
        with self._lock:
            since = rows.oldest()
            if since is None:
                return []
            full = rows.waiting_tokens >= self.limits.batch_tokens
            waited = time.monotonic() - since >= self.limits.wait_ms / 1000
            # Texts that are being written keep the engine busy anyway: rows then need not wait for company.
            if not (full or waited or self._answering.running):
                return []
            return [job for job in payloads(rows.take()) if not job.cancelled]

    def _joining(self) -> list[Job]:
        """Prompts for which there is room."""
        with self._lock:
            most = self._answering.room
            return (
                [job for job in payloads(self._waiting.texts.scheduler.take(most)) if not job.cancelled] if most else []
            )

    def _patience(self) -> float:
        """Seconds until something has to be done without being told."""
        since = self._waiting.rows.scheduler.oldest()
        if since is not None:
            return max(0.0, since + self.limits.wait_ms / 1000 - time.monotonic())
        return SWEEP_SECONDS if self._jobs else 1.0
