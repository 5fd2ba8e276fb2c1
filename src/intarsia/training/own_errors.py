"""Errors that are one run's own: it is Failed, and the others of its pack go on. All else is a bug, and ends the pack loudly."""

import torch

from intarsia.errors import IntarsiaError, TrainingError

MAYBE_OWN = (IntarsiaError, MemoryError, RuntimeError)
"""What to catch, and to ask `own_error` about. torch says that memory is short by a RuntimeError."""
_ON_A_CPU = ("can't allocate memory", "not enough memory: you tried to allocate")
"""What torch's own allocator says, on Linux and macOS and on Windows."""


def own_error(error: Exception, where: str) -> IntarsiaError:
    """As what it is to be told; raises it again where it is no run's own. where: which run or step, and what is kept of it."""
    if isinstance(error, IntarsiaError):
        return error
    short = isinstance(error, MemoryError | torch.OutOfMemoryError) or any(said in str(error) for said in _ON_A_CPU)
    if not short:
        raise error
    # Not linked to `error`, whose frames hold the tensors that the others want the room of.
    return TrainingError(
        f"out of memory {where}; free some memory and go on with --resume, or try a smaller --batch-size and another --out"
    )
