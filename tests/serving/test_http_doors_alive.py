"""Doors and their clients: who hangs up, dies, dawdles or is told to end; and what is counted of what they answer."""

import asyncio
import logging
import os
import signal
import socket
import threading
import time

import pytest

from intarsia.serving.http.doors import connection
from intarsia.serving.http.doors.passage import Passage
from intarsia.serving.requests import Answer
from serving.doors_served import get, read, request, served, status
from serving.served_process import eventually


@pytest.fixture(scope="module")
def behind():
    with served(2, log_texts=True) as one:
        yield one


@pytest.fixture
def held(behind):
    """What the engine was asked and has not answered: (request, deliver)."""
    asked = []
    behind.engine.on["mood"] = lambda request, deliver: asked.append((request, deliver))
    behind.engine.cancelled.clear()
    yield asked
    behind.engine.on.clear()


def answer(behind, held):
    for question, deliver in held:
        deliver(Answer(behind.engine._prediction(question, behind.engine.found["mood"])))


def metric(behind, line):
    """A number of /metrics."""
    found = behind.ask(get("/metrics"))[0].decode()
    return next((float(one.split()[-1]) for one in found.splitlines() if one.startswith(line)), 0.0)


def test_what_doors_answer_is_counted_and_logged(behind, caplog):
    answered = 'intarsia_http_requests_total{method="POST",route="/v1/classify",status='
    before = [metric(behind, answered + '"200"'), metric(behind, answered + '"404"'), len(behind.taken)]
    with caplog.at_level(logging.INFO, "intarsia.serving"):
        behind.ask(*[request()] * 5, request(b'{"task": "nobody", "text": "abc"}'))
    assert len(behind.taken) == before[2]
    assert metric(behind, answered + '"200"') == before[0] + 5
    assert metric(behind, answered + '"404"') == before[1] + 1
    assert metric(behind, 'intarsia_task_requests_total{task="mood"}') >= 5
    assert metric(behind, 'intarsia_http_request_seconds_count{route="/v1/classify"}') >= 6
    assert [line for line in caplog.messages if line.startswith("Classify ")] == [
        'Classify {"task": "mood", "texts": ["abc"], "deadline": null}'
    ] * 5


def test_who_hangs_up_is_not_answered_for(behind, held):
    gone = 'intarsia_http_requests_total{method="POST",route="/v1/classify",status="499"}'
    before = metric(behind, gone)
    with behind.connect() as sock:
        sock.sendall(request())
        eventually(lambda: held)
    eventually(lambda: len(behind.engine.cancelled) == 1)
    assert metric(behind, gone) == before + 1
    answer(behind, held)  # too late: nobody is told
    behind.engine.on.clear()
    assert status(behind.ask(request())[0]) == 200


def test_a_door_that_dies_is_replaced_and_what_it_asked_is_forgotten(behind, held, caplog):
    died = behind.doors
    with behind.connect() as one, behind.connect() as other:  # one at each door
        for sock in (one, other):
            sock.sendall(request())
        eventually(lambda: len(held) == 2)
        os.kill(died[0], signal.SIGKILL)
        eventually(lambda: len(behind.engine.cancelled) == 1)
        answer(behind, held)
        said = [sock.recv(2000) for sock in (one, other)]
        assert sorted(map(bool, said)) == [False, True], "the other door's client is answered"
    eventually(lambda: len(behind.doors) == 2 and len(behind.server._doors._ready) == 2)
    assert len(set(behind.doors) - set(died)) == 1
    assert [line for line in caplog.messages if "has ended; another one is started" in line]
    behind.engine.on.clear()
    for _ in range(4):
        assert status(behind.ask(request())[0]) == 200


def test_a_signal_to_all_processes_is_none_to_the_doors(behind):
    before = eventually(lambda: len(behind.server._doors._ready) == 2 and behind.doors)
    for process in before:
        os.kill(process, signal.SIGTERM)
        os.kill(process, signal.SIGINT)
        os.kill(process, signal.SIGHUP)
    for _ in range(4):
        assert status(behind.ask(request())[0]) == 200
    assert behind.doors == before


def test_a_body_that_dawdles_is_given_away_and_still_answered(behind):
    before, raw = len(behind.taken), request()
    with behind.connect() as sock:
        sock.sendall(raw[:-20])
        for place in range(-20, -4, 4):  # a byte now and then does not keep it here
            time.sleep(connection.WHOLE_SECONDS / 3)
            sock.sendall(raw[place : place + 4])
        eventually(lambda: len(behind.taken) == before + 1, connection.WHOLE_SECONDS / 3)
        sock.sendall(raw[-4:])
        assert status(read(sock.makefile("rb"))) == 200


def test_a_head_that_does_not_end_is_given_away(behind):
    before = len(behind.taken)
    with behind.connect() as sock:
        sock.sendall(b"POST /v1/classify HTTP/1.1\r\nX: " + b"a" * (connection.LONGEST_HEAD + 1))
        eventually(lambda: len(behind.taken) == before + 1)
        assert len(behind.taken[-1]) > connection.LONGEST_HEAD


def test_at_the_end_what_has_begun_is_answered_and_the_rest_is_closed(caplog):
    with served(2) as one:
        asked = []
        one.engine.on["mood"] = lambda request, deliver: asked.append((request, deliver))
        raw, doors = request(), one.doors
        waiting, half, slow, idle, other = (one.connect() for _ in range(5))
        with waiting, half, slow, idle, other:
            other.sendall(get("/health"))
            assert status(read(other.makefile("rb"))) == 200
            waiting.sendall(raw)
            half.sendall(raw[:-5])
            slow.sendall(raw[:-5])
            eventually(lambda: len(asked) == 1)
            stopping = threading.Thread(target=one.stop)
            stopping.start()
            assert idle.recv(100) == b""
            assert other.recv(100) == b""
            half.sendall(raw[-5:])
            eventually(lambda: len(asked) == 2)
            time.sleep(1.5 * connection.WHOLE_SECONDS)  # so that it is given away, and its door can end
            slow.sendall(raw[-5:])
            eventually(lambda: len(asked) == 3)
            answer(one, asked)
            for sock in (waiting, half, slow):
                said = read(reader := sock.makefile("rb"))
                assert status(said) == 200
                assert sock is slow or b"\r\nConnection: close\r\n" in said  # uvicorn does not say so
                assert reader.read() == b""
            with pytest.raises(OSError):
                one.connect()
            stopping.join(10)
            assert not stopping.is_alive()
    for process in doors:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    assert "another one is started" not in caplog.text


def test_what_takes_longer_than_the_grace_is_cut_off():
    with served(1) as one:
        one.server.config.timeout_graceful_shutdown = 0.2
        asked = []
        one.engine.on["mood"] = lambda request, deliver: asked.append(request)
        with one.connect() as sock:
            sock.sendall(request())
            eventually(lambda: asked)
            one.stop()
            assert sock.recv(100) == b""


def test_connections_wait_in_a_passage_that_is_full_and_all_arrive():
    async def main():
        came = []
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here = Passage(ends[0], lambda *_: None, lambda: None)
        for number in range(50):
            ours, theirs = socket.socketpair()
            theirs.sendall(b"%d" % number)
            theirs.close()
            here.give(b"x" * 100_000, ours)
        assert here.waiting, "it cannot hold them all"
        there = Passage(
            ends[1], lambda begun, sock: came.append((len(begun), sock.recv(10), sock.close())), lambda: None
        )
        while len(came) < 50:
            await asyncio.sleep(0.01)
        assert came == [(100_000, b"%d" % number, None) for number in range(50)]
        ours, theirs = socket.socketpair()
        theirs.close()
        here.give(b"last", ours)
        assert there.close() == []
        assert came[50:] == [(4, b"", None)], "what has come is not lost where it ends"
        assert here.close() == []

    asyncio.run(main())


def test_what_does_not_come_through_a_passage_is_not_lost():
    """Nor what the other process had not taken when it ended."""

    async def main():
        gone = []
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here = Passage(one, lambda *_: None, lambda: gone.append(1))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            here.give(b"sent", ours)
            assert gone == []
            other.close()
            here.give(b"kept", ours)
            assert gone == [1]
            assert here.close() == [(b"sent", ours), (b"kept", ours)]
            ours.sendall(b"open")
            assert theirs.recv(10) == b"open"

    asyncio.run(main())
