"""A server with doors answers as one without, byte for byte; and what a door answers itself, it does."""

import contextlib
import gzip
import json
import math
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from intarsia.serving.http import Keys
from intarsia.serving.http.doors.connection import LONGEST_HEAD
from intarsia.serving.http.doors.head import LONGEST_BODY
from intarsia.serving.requests import Answer, Busy, DeadlineExceeded, EngineFailure
from serving.doors_served import SHORT, get, read, request, served, status
from serving.fake_engine import failing
from serving.test_http_straight import BODIES

INFER, ADMIN = "infer-key-0123456789", "admin-key-0123456789"


BY_DOORS = {"one", "many", "no such task", "twice the same name", "an escape"}
"""Bodies whose answer, or refusal, is the engine's."""


@pytest.fixture(scope="module")
def pair():
    """The same server without doors and with two."""
    with served(0) as plain, served(2) as behind:
        yield plain, behind


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    path = tmp_path_factory.mktemp("doors") / "keys"
    path.write_text(f"infer:{INFER}\nadmin:{ADMIN}\n")
    path.chmod(0o600)
    keys = Keys.read(path)
    with served(0, keys) as plain, served(2, keys) as behind:
        yield plain, behind


@pytest.fixture
def engines(pair):
    """`on` of both engines, changed together."""

    def on(task, does):
        for one in pair:
            one.engine.on[task] = does

    yield on
    for one in pair:
        one.engine.on.clear()
        one.engine.state = "ready"


def same(pair, *requests):
    """What both say to requests on one connection, and how many the doors gave away."""
    plain, behind = pair
    before = len(behind.taken)
    said = behind.ask(*requests)
    assert said == plain.ask(*requests)
    return said, len(behind.taken) - before


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/tag"])
@pytest.mark.parametrize("name", BODIES)
def test_a_body_is_answered_and_refused_the_same(pair, path, name):
    _, gave = same(pair, request(BODIES[name], path))
    assert gave == (name not in BY_DOORS)


def test_answers_of_all_kinds_are_the_same(pair):
    tasks = ["mood", "topics", "stars", "nobody", "names", "pair"]
    [said], gave = same(pair, request(json.dumps({"task": tasks, "texts": ["one", ["two", "three"]]}).encode()))
    assert status(said) == 200
    [tagged], gave_tagged = same(pair, request(b'{"task": "names", "texts": ["to Ada", ["Ada", "b c"]]}', "/v1/tag"))
    assert b'"PER"' in tagged
    assert not gave + gave_tagged


# name: (request, the status, whether a door answers it)
WIRE = {
    "another media type": (request(kind="text/plain"), 415, False),
    "charset": (request(kind="application/json; charset=utf-8"), 200, True),
    "in capitals": (request(kind="APPLICATION/JSON;charset=UTF-8"), 200, True),
    "another charset": (request(kind="application/json; charset=latin-1"), 200, False),
    "+json": (request(kind="application/ld+json"), 200, False),
    "a deadline": (request(SHORT, "/v1/classify", "application/json", "X-Deadline-Ms: 5000"), 200, False),
    "a bad deadline": (request(SHORT, "/v1/classify", "application/json", "x-deadline-ms: 0"), 422, False),
    "close": (request(SHORT, "/v1/classify", "application/json", "Connection: close"), 200, True),
    "close, as few write it": (request(SHORT, "/v1/classify", "application/json", "Connection: Close"), 200, False),
    "keep-alive": (request(SHORT, "/v1/classify", "application/json", "Connection: Keep-Alive"), 200, True),
    "a compressed body": (
        request(gzip.compress(SHORT), "/v1/classify", "application/json", "Content-Encoding: gzip"),
        415,
        False,
    ),
    "an upgrade": (request(SHORT, "/v1/classify", "application/json", "Connection: upgrade", "Upgrade: x"), 200, False),
    "two lengths": (request(SHORT, "/v1/classify", "application/json", "Content-Length: 31"), 200, False),
    "two other lengths": (request(SHORT, "/v1/classify", "application/json", "Content-Length: 30"), 400, False),
    "a length that is none": (request().replace(b"Length: 31", b"Length: +31"), 400, False),
    "two hosts": (request(SHORT, "/v1/classify", "application/json", "Host: b"), 400, False),
    "no host": (request().replace(b"Host: a\r\n", b""), 400, False),
    "a folded header": (request(SHORT, "/v1/classify", "application/json", "X: a", " b"), 200, False),
    "a blank before a colon": (request(SHORT, "/v1/classify", "application/json", "X : a"), 400, False),
    "a control character": (request(SHORT, "/v1/classify", "application/json", "X: a\x01"), 200, False),
    "latin-1": (request(SHORT, "/v1/classify", "application/json", "X: \xe9"), 200, True),
    "bare line feeds": (request().replace(b"\r\n", b"\n"), 200, False),
    "chunks": (
        b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1f\r\n" + SHORT + b"\r\n0\r\n\r\n",
        200,
        False,
    ),
    "HTTP/1.0": (request().replace(b"HTTP/1.1", b"HTTP/1.0"), 200, False),
    "no HTTP": (b"\x16\x03\x01", 400, False),
    "a query": (request(SHORT, "/v1/classify?a=b"), 200, False),
    "another method": (get("/v1/classify"), 405, False),
    "another address": (request(SHORT, "/v1/nothing"), 404, False),
    "an address alike": (request(SHORT, "/v1/classify/"), 404, False),
    "HEAD": (get("/", "HEAD", "Connection: close"), 200, False),
    "the page": (get("/"), 200, False),
    "health": (get("/health"), 200, False),
    "an absolute address": (get("http://a:80/v2/models/mood?x=/y"), 200, False),
    "an absolute address, escaped": (get("HTTP://a/v2/models/m%6fod"), 200, False),
    "an absolute address of the page": (get("http://a"), 200, False),
    "an absolute address to ask at": (request(SHORT, "https://a/v1/classify"), 200, False),
    "an absolute address elsewhere": (get("ftp://a/health"), 404, False),
    "a large body": (request(json.dumps({"task": "mood", "text": "a" * LONGEST_BODY}).encode()), 200, False),
    "the largest body": (request(SHORT[:-2] + b"a" * (LONGEST_BODY - len(SHORT)) + SHORT[-2:]), 200, True),
    "a large head": (request(SHORT, "/v1/classify", "application/json", "X: " + "a" * LONGEST_HEAD), 200, True),
    "a larger head": (request(SHORT, "/v1/classify", "application/json", "X: " + "a" * 300_000), 400, False),
    "open inference": (
        request(b'{"inputs":[{"name":"text","datatype":"BYTES","shape":[1],"data":["a"]}]}', "/v2/models/mood/infer"),
        200,
        False,
    ),
}


@pytest.mark.parametrize("name", WIRE)
def test_a_request_on_the_wire_is_answered_the_same(pair, name):
    raw, expected, by_door = WIRE[name]
    [said], gave = same(pair, raw)
    assert status(said) == expected
    if name != "a large head":  # that depends on how it comes
        assert gave == (not by_door)


def test_a_text_comes_in_pieces_through_a_connection_that_was_given_away(pair):
    raw = request(b'{"model": "writer", "prompt": "a", "stream": true}', "/v1/completions")
    said = []
    for one in pair:
        [stream] = one.ask(raw)
        events = [json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: {")]
        said.append([event["choices"] for event in events])
    assert said[0] == said[1]
    assert len(said[1]) > 3


def test_a_client_that_waits_for_100_is_told_to_go_on(pair):
    raw = request(SHORT, "/v1/classify", "application/json", "Expect: 100-continue")
    said = []
    for one in pair:
        with one.connect() as sock:
            reader = sock.makefile("rb")
            sock.sendall(raw[: -len(SHORT)])
            first = read(reader)
            sock.sendall(SHORT)
            said.append((first, read(reader)))
    assert said[0] == said[1]
    assert [status(one) for one in said[0]] == [100, 200]


# headers: (the status, whether a door answers)
CLIENTS = {
    "none": ((), 401, False),
    "a wrong one": (("X-API-Key: wrong-key-0123456789",), 401, False),
    "X-API-Key": ((f"X-API-Key: {INFER}",), 200, True),
    "Bearer": ((f"Authorization: bearer {INFER}",), 200, True),
    "an admin's": ((f"x-api-key: {ADMIN}",), 200, True),
    "a wrong one before a right one": (("Authorization: Bearer wrong-key", f"X-API-Key: {INFER}"), 401, False),
    "twice": ((f"X-API-Key: {INFER}", "X-API-Key: wrong-key-0123456789"), 200, False),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_who_is_let_in_is_the_same(keyed, name):
    headers, expected, by_door = CLIENTS[name]
    [said], gave = same(keyed, request(SHORT, "/v1/classify", "application/json", *headers))
    assert status(said) == expected
    assert gave == (not by_door)


def test_an_absolute_address_needs_a_key_like_any_other(keyed):
    [said], _ = same(keyed, get("http://a/v1/tasks"))
    assert status(said) == 401
    [said], _ = same(keyed, get("http://a/health"))
    assert status(said) == 200


def test_a_stranger_is_refused_before_its_body_has_come(keyed):
    plain, behind = (one.ask(request(b"")[:-2].replace(b"Length: 0", b"Length: 9") + b"\r\n") for one in keyed)
    assert plain == behind
    assert status(behind[0]) == 401


@pytest.mark.parametrize("pieces", ["at once", "byte by byte"])
def test_requests_that_come_before_the_answers_are_answered_in_their_order(pair, pieces):
    short, long = request(), request(b'{"task": "mood", "text": "a longer one"}')
    requests = [short, long, short, get("/health"), long, short]
    said = []
    for one in pair:
        with one.connect() as sock:
            if pieces == "at once":
                sock.sendall(b"".join(requests))
            else:
                for byte in b"".join(requests):
                    sock.sendall(bytes([byte]))
            reader = sock.makefile("rb")
            said.append([read(reader) for _ in requests])
    assert said[0] == said[1]
    assert [b'"ready"' in one for one in said[1]] == [False, False, False, True, False, False]


def test_a_connection_comes_back_to_a_door(pair):
    said, gave = same(pair, request(), get("/health"), request(), request(b"{}"), request(), get("/"), request())
    assert [status(one) for one in said] == [200, 200, 200, 422, 200, 200, 200]
    assert gave == 3, "only what a door does not answer is given away"


def test_who_asks_without_end_has_to_wait_and_then_gets_all_answers(pair):
    _, behind = pair
    raw, count, held = request(json.dumps({"task": "mood", "text": "long " * 12_000}).encode()), 500, []
    behind.engine.on["mood"] = lambda question, deliver: held.append((question, deliver))
    with behind.connect() as sock:
        sock.settimeout(1)
        sent, whole = 0, raw * count
        with contextlib.suppress(TimeoutError):
            while sent < len(whole):
                sent += sock.send(whole[sent : sent + 2**16])
        assert sent < len(whole), "the door reads what it cannot answer"
        behind.engine.on.clear()
        [(question, deliver)] = held
        deliver(Answer(behind.engine._prediction(question, behind.engine.found["mood"])))
        sending = threading.Thread(target=sock.sendall, args=(whole[sent:],))
        sock.settimeout(30)
        sending.start()
        reader = sock.makefile("rb")
        assert {len(read(reader)) for _ in range(count)} == {len(behind.ask(raw)[0])}
        sending.join()


def test_failures_of_the_engine_are_the_same(pair, engines):
    engines("mood", failing(Busy("5 requests wait already", retry_after=1.5)))
    [said], gave = same(pair, request())
    assert status(said) == 429
    assert b"retry-after: 2\r\n" in said
    engines("mood", failing(DeadlineExceeded("too late")))
    [late], gave_late = same(pair, request())
    assert status(late) == 504
    engines("spam", failing(EngineFailure("the model failed")))
    [partial], gave_partial = same(pair, request(b'{"task": ["mood", "spam", "stars"], "text": "a"}'))
    assert status(partial) == 200
    assert b'"code":504' in partial
    assert not gave + gave_late + gave_partial


def test_scores_that_are_no_numbers_are_null_in_both(pair, engines):
    said = SimpleNamespace(label="yes", prediction=1, scores={"no": math.nan, "yes": math.inf})
    engines("mood", lambda request, deliver: deliver(Answer(said)))
    [found], gave = same(pair, request())
    assert b'{"no":null,"yes":null}' in found
    assert not gave


def test_a_dead_engine_is_503_and_a_bug_500(pair, engines):
    def bug(request, deliver):
        raise RuntimeError("secret")

    engines("mood", bug)
    [said], _ = same(pair, request())
    assert status(said) == 500
    for one in pair:
        one.engine.state = "dead"
    [said], gave = same(pair, request())
    assert status(said) == 503
    assert not gave


def test_a_door_loads_neither_torch_nor_the_framework():
    code = "import sys, intarsia.serving.http.doors.door; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "pydantic" in loaded
    assert not {"torch", "transformers", "fastapi", "starlette", "uvicorn", "numpy"} & set(loaded)
