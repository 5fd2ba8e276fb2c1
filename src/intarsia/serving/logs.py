"""The log of a server. An exception's message may hold somebody's text, so only its kind and place are written down."""

import logging
import traceback

log = logging.getLogger("intarsia.serving")


def note_bug(what: str, error: BaseException) -> None:
    """What went wrong, of which kind it was, and where."""
    log.error("%s: %s\n%s", what, type(error).__name__, "".join(traceback.format_tb(error.__traceback__)).rstrip())
