"""A folder of task folders, watched: a new one becomes a task, a changed one a new version, one that is removed goes.

The folder's name is the task's public name. What is half written waits; what is broken is reported once, and the old version stays.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from intarsia.errors import IntarsiaError, TaskError
from intarsia.serving.cards import Card
from intarsia.serving.engine import Engine
from intarsia.serving.logs import log, note_bug
from intarsia.taskfile import DESCRIPTION, TENSORS

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
POLL_SECONDS = 1.0
YOUNG_SECONDS = 2.0
"""Files that were written so recently may not be whole yet."""
HIDDEN = ".intarsia-"

NAMING = "begin with a letter or digit, and have only letters, digits, '.', '_' and '-', at most 128 in all"

Look = tuple[tuple[int, int, int, int], tuple[int, int, int, int]]
"""What tells that the two files of a folder, or who may read them, have changed."""


class Library:
    """The tasks of a folder, served by an engine."""

    def __init__(self, folder: Path, engine: Engine, *, say: Callable[[str], None] = log.warning) -> None:
        """say: gets one line for each folder that cannot be served."""
        self.folder, self.engine, self.say = folder, engine, say
        self._seen: dict[str, Look] = {}
        """The look that has been dealt with, by name."""
        self._served: set[str] = set()
        self._unfit: set[str] = set()
        """Folders that hold a task and cannot be served, as they are called or because they are links; each has been said."""
        self._unread = ""
        """Why the folder itself could not be read at the last look."""
        self._changing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="intarsia-library", daemon=True)

    def start(self) -> int:
        """Serves what is there, and watches from now on; returns the number of tasks."""
        for left in self.folder.glob(f"{HIDDEN}*"):  # of an upload that was killed
            shutil.rmtree(left, ignore_errors=True)
        self.look()
        self._thread.start()
        return len(self._served)

    def stop(self) -> None:
        """Watches no longer."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Brings the engine's tasks in line with the folder."""
        with self._changing:
            there = self._there()
            for name, found in there.items():
                if self._seen.get(name) != found:
                    self._take(name, found)
            for name in [name for name in self._seen if name not in there]:
                del self._seen[name]
                self._remove(name)

    def write(self, name: str, description: bytes, tensors: bytes) -> Card:
        """A task from its two files; checked against the backbone before it can be seen. TaskError, and nothing changed, where
        it cannot be served; OSError, and nothing changed, where it cannot be written."""
        _check_name(name)
        with self._changing:
            new = Path(tempfile.mkdtemp(prefix=f"{HIDDEN}new-", dir=self.folder))
            try:
                for file, content in ((DESCRIPTION, description), (TENSORS, tensors)):
                    with open(new / file, "wb") as out:
                        out.write(content)
                        out.flush()
                        os.fsync(out.fileno())
                card = self.engine.put(name, new)
                try:
                    self._swap(new, self.folder / name)
                except OSError:
                    self._back(name)
                    raise
            except IntarsiaError as error:
                # The folder that it was in is ours, and means nothing to the caller.
                raise type(error)(str(error).replace(str(new), f"task {name!r}")) from None
            finally:
                shutil.rmtree(new, ignore_errors=True)
            self._served.add(name)
            self._seen[name] = _look(self.folder / name) or ((0, 0, 0, 0), (0, 0, 0, 0))
            return card

    def delete(self, name: str) -> None:
        """The task and its folder go. TaskError when there is none."""
        _check_name(name)
        with self._changing:
            folder = self.folder / name
            if name not in self._served or folder.is_symlink() or not folder.is_dir():
                raise TaskError(f"there is no task {name!r} in the tasks folder")
            gone = Path(tempfile.mkdtemp(prefix=f"{HIDDEN}old-", dir=self.folder))
            os.replace(folder, gone / name)
            self._seen.pop(name, None)
            self._remove(name)
            shutil.rmtree(gone, ignore_errors=True)

    def _back(self, name: str) -> None:
        """The version that is in the folder again, after one that could not be put there."""
        if (self.folder / name).is_dir():
            self.engine.put(name, self.folder / name)
        else:
            self.engine.remove(name)

    def _swap(self, new: Path, folder: Path) -> None:
        """The new folder in the old one's place; no moment without either is longer than a rename."""
        os.chmod(new, 0o755)
        if not folder.exists():
            os.replace(new, folder)
            return
        gone = Path(tempfile.mkdtemp(prefix=f"{HIDDEN}old-", dir=self.folder))
        try:
            os.replace(folder, gone / "task")
            try:
                os.replace(new, folder)
            except OSError:
                os.replace(gone / "task", folder)
                raise
        finally:
            shutil.rmtree(gone, ignore_errors=True)

    def _there(self) -> dict[str, Look]:
        """The task folders, by name."""
        found = {}
        try:
            entries = sorted(os.scandir(self.folder), key=lambda entry: entry.name)
        except OSError as error:
            why = str(error.strerror)
            if why != self._unread:  # once, and not at every look
                self.say(f"the tasks folder cannot be read, its tasks stay: {why}")
            self._unread = why
            return dict(self._seen)
        self._unread, unfit = "", {}
        for entry in entries:
            if entry.name.startswith(".") or (look := _look(Path(entry.path))) is None:
                continue
            if entry.is_symlink():  # it may lead out of the folder
                unfit[entry.name] = "it is a link; put the task folder itself there"
            elif not NAME.fullmatch(entry.name):
                unfit[entry.name] = f"rename it: a task's name must {NAMING}"
            else:
                found[entry.name] = look
        for name in unfit.keys() - self._unfit:
            self.say(f"{self.folder / name} is not served: {unfit[name]}")
        self._unfit = set(unfit)
        return found

    def _take(self, name: str, found: Look) -> None:
        try:
            self.engine.put(name, self.folder / name)
        except IntarsiaError as error:
            newest = max(stamp for stamp, *_ in found) / 1e9
            if time.time() - newest < YOUNG_SECONDS:
                return  # it may be half written; the next look tells
            self.say(f"{self.folder / name} is not served: {error}")
        except Exception as error:  # noqa: BLE001 - one folder must not end the watch over all
            self.say(f"{self.folder / name} is not served: {type(error).__name__}: {error}")
        else:
            self._served.add(name)
        self._seen[name] = found

    def _remove(self, name: str) -> None:
        if name in self._served:
            self._served.discard(name)
            try:
                self.engine.remove(name)
            except IntarsiaError as error:
                self.say(f"task {name!r} could not be taken out: {error}")

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            if self.engine.state != "ready":
                continue
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - the watch goes on
                note_bug("looking at the tasks folder failed", error)


def _look(folder: Path) -> Look | None:
    """None where a file is missing."""
    found = []
    for name in (DESCRIPTION, TENSORS):
        try:
            facts = (folder / name).stat()
        except OSError:
            return None
        found.append((facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size, facts.st_ino))
    return found[0], found[1]


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise TaskError(f"a task's name must {NAMING}")
