"""Memory that the process has freed goes back to the system."""

import ctypes
import sys

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
"""glibc's; other allocators do not have it."""


def give_back() -> None:
    """A server for which tasks come and go all day would grow: glibc keeps what was freed between two tensors that stayed."""
    if _trim is not None:
        _trim(0)
