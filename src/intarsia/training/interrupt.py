"""Ctrl-C between two steps rather than within one."""

import signal
import threading
from types import FrameType, TracebackType


class Stopped(KeyboardInterrupt):
    """Ctrl-C, at a moment when the state of the run is whole."""


class CtrlC:
    """The first Ctrl-C waits for the next `check()`; the second ends at once. Signals come to the main thread only."""

    def __init__(self) -> None:
        self._asked = False
        self._before = None

    def check(self) -> None:
        if self._asked:
            raise Stopped("stopped by Ctrl-C")

    def __enter__(self) -> "CtrlC":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
