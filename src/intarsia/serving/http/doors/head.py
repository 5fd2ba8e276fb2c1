"""The head of a question that a door answers. It is read more strictly than HTTP asks: whatever is unusual is left to who knows all
of HTTP, so that nothing can mean one thing here and another there."""

import re
from dataclasses import dataclass

from intarsia.serving.http.keys import presented

START = b"POST /v1/"
BLANK = re.compile(rb"\n\r?\n")
"""The end of a head, also of one that is not as it should be."""
_HEAD = re.compile(
    rb"POST (/v1/classify|/v1/tag) HTTP/1\.1\r\n((?:[-!#$%&'*+.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*\r\n)+)\r\n"
)
_JSON = re.compile(r"application/json(?:;[ \t]*charset=utf-8)?", re.IGNORECASE)
_LENGTH = re.compile(r"[0-9]{1,6}")
LONGEST_BODY = 64 * 2**10
OTHERS = frozenset({"transfer-encoding", "content-encoding", "expect", "upgrade", "x-deadline-ms"})
"""Headers that ask for more."""


@dataclass(frozen=True, slots=True)
class Head:
    """What counts of a head."""

    path: str
    size: int
    """Its bytes."""
    length: int
    """The body's bytes."""
    key: str | None
    last: bool
    """The client wants the connection closed behind the answer."""


def read_head(begun: bytes) -> Head | None:
    """begun: a request from its first byte, with all of its head. None: it is not for a door."""
    found = _HEAD.match(begun)
    if found is None:
        return None
    lines = found[2].decode("latin-1").split("\r\n")[:-1]
    headers = {name.lower(): value.strip(" \t") for name, _, value in (line.partition(":") for line in lines)}
    length, connection = headers.get("content-length", ""), headers.get("connection", "keep-alive")
    if (
        len(headers) < len(lines)  # one of them comes twice
        or not headers.keys().isdisjoint(OTHERS)
        or "host" not in headers
        or not _JSON.fullmatch(headers.get("content-type", ""))
        or not _LENGTH.fullmatch(length)
        or int(length) > LONGEST_BODY
        or (connection != "close" and connection.lower() != "keep-alive")
    ):
        return None
    return Head(found[1].decode(), found.end(), int(length), presented(headers), connection == "close")
