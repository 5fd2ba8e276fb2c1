"""The ledger of a comparison: one JSON line for each thing that has happened, in the order in which it did.

Lines are only ever added, and each is on the disk before the next thing begins; a line that a kill cut short is taken off
again. What a comparison knows is what its ledger says, so that one which is resumed goes on where it was.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from intarsia.errors import ConfigError
from intarsia.training.checkpoint import disk_errors

FILE = "ledger.jsonl"
KEPT = "what has ended is kept"
"""Of a comparison that a full disk stops."""
Event = dict[str, Any]


class Ledger:
    """The ledger in the folder `out`, held by one process at a time."""

    def __init__(self, out: Path, *, resume: bool, began: float | None = None) -> None:
        """began: when the command started, by time.monotonic(). ConfigError for a folder that another comparison holds, or
        that has one which is not to be resumed."""
        self.path = out / FILE
        if not resume and self.path.exists() and self.path.stat().st_size:
            raise ConfigError(f"{out} already holds a comparison; go on with --resume, or choose another --out")
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")  # noqa: SIM115 - held until `close`
        except OSError as error:
            raise ConfigError(f"cannot write to {out}: {error.strerror or error}; choose another --out") from error
        self._hold()
        self.events = self._read()
        self._before = max((event.get("spent", 0.0) for event in self.events), default=0.0)
        self._began = time.monotonic() if began is None else began

    def spent(self) -> float:
        """Seconds so far, those before a kill included as far as the ledger knows them."""
        return self._before + time.monotonic() - self._began

    def add(self, event: str, **facts: Any) -> Event:
        """Writes a line. DiskError when the disk is full."""
        line = {"event": event, "spent": round(self.spent(), 3), **facts}
        with disk_errors(FILE, self.path.parent, kept=KEPT):
            self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self.events.append(line)
        return line

    def all(self, event: str) -> Iterator[Event]:
        """The lines of one sort."""
        return (line for line in self.events if line["event"] == event)

    def last(self, event: str) -> Event | None:
        """The last line of one sort."""
        return next((line for line in reversed(self.events) if line["event"] == event), None)

    def close(self) -> None:
        """Lets the folder go; of a comparison that came to nothing no trace is left."""
        if not self.events:
            self.path.unlink(missing_ok=True)
            with suppress(OSError):  # others' files are in it
                self.path.parent.rmdir()
        with suppress(OSError):  # a line that the full disk did not take, which has been said
            self._file.close()

    def _hold(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ConfigError(f"another intarsia compare is at work in {self.path.parent}; wait for it") from None

    def _read(self) -> list[Event]:
        self._file.seek(0)
        events, whole = read_lines(self._file.read(), self.path)
        self._file.truncate(whole)
        return events


def read_lines(data: bytes, path: Path) -> tuple[list[Event], int]:
    """The whole lines, and how many bytes they take. ConfigError where one of them is damaged."""
    whole = data.rfind(b"\n") + 1
    events = []
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            event = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number} is damaged ({error}); choose another --out") from error
        events.append(event)
    return events, whole


def read(out: Path) -> list[Event]:
    """The events in a folder, for reading alone. ConfigError where there is no ledger."""
    path = out / FILE
    if not path.is_file():
        raise ConfigError(f"{out} holds no comparison (no {FILE}); give the --out folder of an `intarsia compare`")
    return read_lines(path.read_bytes(), path)[0]
