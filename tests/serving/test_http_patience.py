"""Connections on which something does not come: they are kept for a while and then closed, with doors and without."""

import asyncio
import socket
import time

import pytest

from intarsia.serving.http import patience
from intarsia.serving.http.doors import connection
from serving.doors_served import get, read, request, served, status
from serving.served_process import eventually


@pytest.fixture(scope="module")
def pair():
    """The same server without doors and with one."""
    with served(0) as plain, served(1) as behind:
        yield plain, behind


def trickle(sock, data):
    """Sends a byte now and then; returns what comes back until the other end closes, or None when all has been sent."""
    sock.settimeout(0.05)
    said = b""
    for at in range(len(data)):
        try:
            sock.sendall(data[at : at + 1])
            part = sock.recv(65536)
        except TimeoutError:
            continue
        except ConnectionError:
            return said
        if not part:
            return said
        said += part
    return None


@pytest.mark.parametrize("start", [b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nX: ", b"GET /health HTTP/1.1\r\nX: "])
def test_a_head_that_trickles_in_is_408_in_the_end(pair, monkeypatch, start):
    monkeypatch.setattr(patience, "HEAD_SECONDS", 0.5)
    said = []
    for one in pair:
        with one.connect() as sock:
            sock.sendall(start)
            said.append(trickle(sock, b"a" * 400).split(b"\r\n"))
        lines = said[-1]
        assert lines[0] == b"HTTP/1.1 408 Request Timeout"
        assert b"connection: close" in lines
        assert (
            lines[-1] == b'{"error":{"message":"the head took too long to arrive","type":"timeout_error","code":408}}'
        )


def test_so_is_the_head_of_a_second_request_and_the_answer_before_is_whole(pair, monkeypatch):
    monkeypatch.setattr(patience, "HEAD_SECONDS", 0.5)
    for one in pair:
        with one.connect() as sock:
            sock.sendall(request() + get("/health")[:-2])
            reader = sock.makefile("rb")
            assert status(read(reader)) == 200
            assert status(read(reader)) == 408
            assert reader.read() == b""


def test_a_head_that_comes_in_pieces_is_answered_and_its_time_does_not_go_on(pair, monkeypatch):
    monkeypatch.setattr(patience, "HEAD_SECONDS", 1.5)
    for one in pair:
        with one.connect() as sock:
            reader = sock.makefile("rb")
            for pause in (2.0, 0.0):
                sock.sendall(get("/health")[:9])
                time.sleep(0.1)
                sock.sendall(get("/health")[9:])
                assert status(read(reader)) == 200
                time.sleep(pause)


def test_the_rest_of_a_body_behind_its_answer_may_not_trickle_without_end(pair, monkeypatch):
    monkeypatch.setattr(patience, "HEAD_SECONDS", 0.5)
    head = b"POST /v1/nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 400\r\n\r\n"
    for one in pair:
        with one.connect() as sock:
            sock.sendall(head)
            assert status(trickle(sock, b"a" * 399)) == 404
        with one.connect() as sock:  # and where it ends, the connection goes on
            reader = sock.makefile("rb")
            sock.sendall(head)
            assert status(read(reader)) == 404
            sock.sendall(b"a" * 400)
            sock.sendall(get("/health"))
            assert status(read(reader)) == 200


def test_a_connection_that_is_silent_is_closed(pair, monkeypatch):
    monkeypatch.setattr(patience, "SILENT_SECONDS", 0.1)
    with pair[0].connect() as sock:
        assert sock.recv(100) == b""


def test_a_connection_whose_body_has_ended_behind_its_answer_is_closed_as_others_are(pair, monkeypatch):
    one = pair[0]
    monkeypatch.setattr(one.server.config, "timeout_keep_alive", 1)
    with one.connect() as sock:
        reader = sock.makefile("rb")
        sock.sendall(b"POST /v1/nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n")
        assert status(read(reader)) == 404
        sock.sendall(b"abcd")
        assert reader.read() == b""
    eventually(lambda: not one.server.server_state.connections)


def test_a_door_closes_what_is_silent_or_idle(monkeypatch):
    """One that was asked something behind its answer; one that never was, later."""
    monkeypatch.setattr(patience, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(patience, "SILENT_SECONDS", 1.0)

    class Door:
        ending, connections = False, set()

        def knows(self, key):
            return True

        def ask(self, one, path, since, question):
            asyncio.get_running_loop().call_soon(one.answer, 200, [("content-length", "2")], b"ok")
            return lambda: None

    async def main():
        made, loop = [], asyncio.get_running_loop()
        for _ in range(2):
            ours, theirs = socket.socketpair()
            await loop.connect_accepted_socket(lambda: connection.Connection(Door(), b""), ours)
            made.append(await asyncio.open_connection(sock=theirs))
        (reader, writer), (silent, other) = made
        writer.write(request())
        assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"\r\n\r\nok")
        assert await asyncio.wait_for(silent.read(), 5) == b""
        writer.close()
        other.close()
        await asyncio.sleep(0.01)

    asyncio.run(main())
