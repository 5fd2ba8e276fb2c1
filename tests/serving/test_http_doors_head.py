"""What a door takes for a head is one to h11 too, and says the same there."""

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.serving.http.doors.head import read_head
from intarsia.serving.http.keys import presented

HEAD = b"\r\n".join(
    [
        b"POST /v1/classify HTTP/1.1",
        b"Host: a",
        b"X-API-Key:  some-key\t",
        b"Content-Type: application/json; charset=UTF-8",
        b"Connection: keep-alive",
        b"content-length: 31",
        b"",
        b"",
    ]
)
PIECES = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b"\x00",
        b"\x0b",
        b"\x7f",
        b"\xff",
        b"\x85",
        b",",
        b";",
        b"0",
        b"+",
        b"_",
    ),
    *(
        b"Host: b\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Expect: 100-continue\r\n",
    ),
    *(b"HTTP/1.0", b"GET ", b"?", b"%41", b"/v1/tag", b"close"),
]
EDITS = st.lists(st.tuples(st.integers(0, len(HEAD)), st.integers(0, 30), st.sampled_from([b"", *PIECES])), max_size=3)


def edited(edits):
    """The head with some of its bytes replaced."""
    head = HEAD
    for place, length, piece in edits:
        head = head[:place] + piece + head[place + length :]
    return head


@settings(max_examples=3000, deadline=None, database=None, derandomize=True)
@given(EDITS)
def test_what_a_door_reads_h11_reads_the_same(edits):
    begun = edited(edits) + b"the body and the next request"
    head = read_head(begun)
    if head is None:
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(begun)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
    assert (request.method, request.target.decode(), request.http_version) == (b"POST", head.path, b"1.1")
    assert int(headers["content-length"]) == head.length
    assert "transfer-encoding" not in headers
    assert presented(headers) == head.key
    assert connection.trailing_data[0] == begun[head.size :]
    assert not connection.they_are_waiting_for_100_continue
    assert (headers.get("connection") == "close") == head.last


def test_the_head_that_is_edited_is_a_doors():
    head = read_head(HEAD)
    assert head is not None
    assert (head.path, head.size, head.length, head.key, head.last) == (
        "/v1/classify",
        len(HEAD),
        31,
        "some-key",
        False,
    )
