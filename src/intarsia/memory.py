"""Memory that the process has freed: it goes back to the system, or stays for the next step."""

import ctypes
import os
import sys

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_trim, _set = (getattr(_libc, name, None) for name in ("malloc_trim", "mallopt"))
"""glibc's; other allocators do not have them."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
KEPT = {_MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 2**30, _TOP_PAD: 64 * 2**20}
"""Blocks of up to 32 MiB (glibc's limit) have no mapping of their own, and up to a GiB of what is free stays."""


def give_back() -> None:
    """A server for which tasks come and go all day would grow: glibc keeps what was freed between two tensors that stayed."""
    if _trim is not None:
        _trim(0)


def keep_freed() -> None:
    """From now on steps of training on a CPU find the memory of the steps before them.

    Batches differ in length, and glibc gives back what is free at the end of its heap when it has grown: pages that
    the system clears anew for the next step. A user's own settings for malloc stay.
    """
    asked = os.environ.get("GLIBC_TUNABLES", "") + " ".join(name for name in os.environ if name.startswith("MALLOC_"))
    if _set is not None and "malloc" not in asked.lower():
        for option, value in KEPT.items():
            _set(option, value)
