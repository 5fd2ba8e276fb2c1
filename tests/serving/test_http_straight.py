"""The shorter way of a question as it should be, and how answers leave: as few system calls as they can be."""

import asyncio
import json
import threading

import fastapi.routing
import pytest

from intarsia.serving.http.onewrite import MOST, _Joined
from intarsia.serving.http.post import Post
from serving.fake_engine import FakeEngine, serving

USUAL = {"Content-Type": "application/json; charset=utf-8"}
STRAIGHT = {"Content-Type": "application/json"}
BODIES = {
    "one": b'{"task": "mood", "text": "abc"}',
    "many": b'{"task": ["spam", "pair"], "texts": [["a", "b"], "c"]}',
    "no such task": b'{"task": "nobody", "text": "abc"}',
    "twice the same name": b'{"task": "mood", "task": "spam", "text": "abc"}',
    "not JSON": b'{"task": "mood", "text": ',
    "empty": b"",
    "NaN": b'{"task": "mood", "text": NaN}',
    "a number": b'{"task": "mood", "text": 5}',
    "not known": b'{"task": "mood", "text": "abc", "more": 1}',
    "both": b'{"task": "mood", "text": "abc", "texts": ["b"]}',
    "half a surrogate pair": b'{"task": "mood", "text": "\\ud800"}',
    "not UTF-8": b'{"task": "mood", "text": "\xff"}',
    "too deep": b'{"task": "mood", "text": ' + b"[" * 100_000,
    "an escape": b'{"task": "mood", "text": "\\u00e9\\ud83d\\ude00\\u0000"}',
    "too many": json.dumps({"task": ["mood"] * 600, "text": "abc"}).encode(),
    "a byte order mark": b'\xef\xbb\xbf{"task": "mood", "text": "abc"}',
}


@pytest.fixture
def client():
    return serving(FakeEngine())


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/tag"])
@pytest.mark.parametrize("name", BODIES)
def test_it_answers_and_refuses_as_the_usual_way(client, path, name):
    straight, usual = (client.post(path, content=BODIES[name], headers=headers) for headers in (STRAIGHT, USUAL))
    assert (straight.status_code, straight.json()) == (usual.status_code, usual.json())
    assert straight.headers.items() == usual.headers.items()


def test_who_hangs_up_before_the_body_is_whole_is_no_bug(client, caplog):
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/classify",
        "raw_path": b"/v1/classify",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"500")],
    }
    events = iter([{"type": "http.request", "body": b'{"task"', "more_body": True}, {"type": "http.disconnect"}])
    sent = []

    async def receive():
        return next(events)

    async def send(event):
        sent.append(event)

    with caplog.at_level("INFO"):
        asyncio.run(client.app(scope, receive, send))
    assert not sent
    assert "ClientDisconnect" not in caplog.text
    assert 'route="/v1/classify",status="0"' in client.get("/metrics").text


def test_only_the_usual_way_goes_through_the_frameworks_dependencies(client, monkeypatch):
    calls = []
    real = fastapi.routing.solve_dependencies

    async def counted(**more):
        calls.append(1)
        return await real(**more)

    monkeypatch.setattr(fastapi.routing, "solve_dependencies", counted)
    assert client.post("/v1/classify", content=BODIES["one"], headers=STRAIGHT).status_code == 200
    assert not calls
    assert client.post("/v1/classify", content=BODIES["one"], headers=STRAIGHT | {"X-Deadline-Ms": "50"}).is_success
    assert calls


def test_events_of_one_pass_wake_the_loop_once_and_keep_their_order():
    post, wakings = Post(), []

    async def received():
        loop, queue = asyncio.get_running_loop(), asyncio.Queue()
        real = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args: wakings.append(1) or real(*args)

        def engine():
            for number in range(100):
                post.send(loop, queue, number)

        thread = threading.Thread(target=engine)
        thread.start()
        thread.join()  # the loop is busy meanwhile
        first = [await queue.get() for _ in range(100)]
        post.send(loop, queue, "later")
        return [*first, await queue.get()]

    assert asyncio.run(received()) == [*range(100), "later"]
    assert len(wakings) == 2
    closed = asyncio.new_event_loop()
    closed.close()
    post.send(closed, asyncio.Queue(), "nobody")  # and nothing is raised on the engine's thread


class Wire:
    """A transport that remembers what was written."""

    def __init__(self):
        self.written = []

    def write(self, data):
        self.written.append(bytes(data))

    def close(self):
        self.written.append("closed")

    def is_closing(self):
        return "closed" in self.written


def test_what_is_written_in_one_turn_of_the_loop_leaves_in_one_write():
    async def main():
        wire = Wire()
        joined = _Joined(wire, asyncio.get_running_loop())
        joined.write(b"head ")
        joined.write(b"")
        joined.write(b"body")
        assert not wire.written
        await asyncio.sleep(0)
        assert wire.written == [b"head body"]
        joined.write(b"x" * MOST)
        joined.write(b"y")  # enough is held back
        assert len(wire.written) == 2
        joined.write(b"last")
        joined.close()
        await asyncio.sleep(0)
        assert wire.written[2:] == [b"last", "closed"]
        assert joined.is_closing()

    asyncio.run(main())
