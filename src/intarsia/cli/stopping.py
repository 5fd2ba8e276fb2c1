"""Ctrl-C where there is no run yet that could be saved: while modules are imported, and while the process ends."""

import os
import signal
from types import FrameType


def end_cleanly_in_imports() -> None:
    """From now on Ctrl-C during an import ends the process there, with one line and status 130; elsewhere it is KeyboardInterrupt.

    An exception would go through modules that are half made: torch's C++ aborts on it, and others catch it and go on.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a script has us ignore it
        signal.signal(signal.SIGINT, _interrupted)


def end_at_once() -> None:
    """The last words are said: one more Ctrl-C shall not draw a traceback from what is taken down."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Python ends by the signal, whatever status is returned, after a KeyboardInterrupt that went through an `exec` of a text, as
    # dataclasses do; until the next one.
    exec("")


def _interrupted(number: int, frame: FrameType | None) -> None:
    if _importing(frame):
        os.write(2, b"intarsia: interrupted\n")  # no print: it may be what was interrupted
        os._exit(130)
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
