"""Ctrl-C where there is no run yet that could be saved: while modules are imported, and while the process ends."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

INTERRUPTED = 130
"""The exit status."""


def end_cleanly_in_imports() -> None:
    """From now on Ctrl-C during an import ends the process there, with one line and status 130; elsewhere it is KeyboardInterrupt.

    An exception would go through modules that are half made: torch's C++ aborts on it, and others catch it and go on.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a script has us ignore it
        signal.signal(signal.SIGINT, _interrupted)


def end_at_once(status: int) -> None:
    """The last words are said: one more Ctrl-C shall not draw a traceback from what is taken down.

    Where Ctrl-C has ended the command, so does the process, without being taken down: a thread that is still at work would abort
    it, and Python ends by the signal, whatever the status, if a KeyboardInterrupt went through an `exec` of a text.
    """
    if status == INTERRUPTED:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(status)
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupted(number: int, frame: FrameType | None) -> None:
    if _importing(frame):
        os.write(2, b"intarsia: interrupted\n")  # no print: it may be what was interrupted
        os._exit(INTERRUPTED)
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
