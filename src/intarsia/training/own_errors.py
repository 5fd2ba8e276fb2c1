"""Errors that are one run's own: it is Failed, and the others of its pack go on. All else is a bug, and ends the pack loudly."""

from intarsia.errors import IntarsiaError, TrainingError, is_out_of_memory

MAYBE_OWN = (IntarsiaError, MemoryError, RuntimeError)
"""What to catch, and to ask `own_error` about. torch says that memory is short by a RuntimeError."""


def own_error(error: Exception, where: str) -> IntarsiaError:
    """As what it is to be told; raises it again where it is no run's own. where: which run or step, and what is kept of it."""
    if isinstance(error, IntarsiaError):
        return error
    if not is_out_of_memory(error):
        raise error
    # Not linked to `error`, whose frames hold the tensors that the others want the room of.
    return TrainingError(
        f"out of memory {where}; free some memory and go on with --resume, or try a smaller --batch-size and another --out"
    )
