"""Doors that die or hang: they are replaced, and who connects meanwhile is answered."""

import os
import signal
import threading
import time

import pytest

from intarsia.serving.http.doors import doors
from serving.doors_served import read, request, served, status
from serving.served_process import eventually


@pytest.fixture(scope="module")
def behind():
    with served(2) as one:
        yield one


def test_without_any_door_clients_wait_for_the_next_one(behind):
    for process in behind.doors:
        os.kill(process, signal.SIGKILL)
    eventually(lambda: not behind.server._doors._ready)
    assert status(behind.ask(request())[0]) == 200


def test_who_connects_when_a_door_has_died_and_nobody_has_noticed_is_answered(behind):
    """Also where both have."""
    for number in (1, 2):
        before = eventually(lambda: len(behind.server._doors._ready) == 2 and behind.doors)
        clients, connected = [], threading.Event()

        def die(dying=before[:number], clients=clients, connected=connected):
            """On the server's loop, which looks at nothing else meanwhile."""
            for process in dying:
                os.kill(process, signal.SIGKILL)
                os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
            for _ in range(4):
                clients.append(behind.connect())
                clients[-1].sendall(request())
            behind.server._doors._accept()
            connected.set()

        behind.server._doors._loop.call_soon_threadsafe(die)
        assert connected.wait(10)
        for client in clients:
            with client:
                assert status(read(client.makefile("rb"))) == 200


def test_a_door_that_hangs_is_replaced_and_who_connects_meanwhile_is_answered(behind, monkeypatch, caplog):
    monkeypatch.setattr(doors, "KNOCK_SECONDS", 0.1)
    ours = behind.server._doors
    before = eventually(lambda: len(ours._ready) == 2 and behind.doors)
    for process in before:
        os.kill(process, signal.SIGSTOP)
    waiting = [behind.connect() for _ in range(4)]  # at doors that hang
    for client in waiting:
        client.sendall(request())
    eventually(lambda: all(one.gate.silence >= doors.SHY for one in ours._ready))
    for _ in range(4):  # here by the engine's process, as all hang
        assert status(behind.ask(request())[0]) == 200
    eventually(lambda: not set(before) & set(behind.doors) and len(ours._ready) == 2)
    for process in before:
        line = f"door process {process} does not answer and is killed; another one is started"
        assert caplog.messages.count(line) == 1
        assert not any(f" {process} has ended" in one for one in caplog.messages)
    for client in waiting:
        with client:
            assert status(read(client.makefile("rb"))) == 200


def test_doors_are_not_killed_when_the_engines_process_stood_still(behind, monkeypatch):
    monkeypatch.setattr(doors, "KNOCK_SECONDS", 0.1)
    before = eventually(lambda: len(behind.server._doors._ready) == 2 and behind.doors)
    behind.server._doors._loop.call_soon_threadsafe(time.sleep, 0.1 * (doors.HUNG + 10))
    assert status(behind.ask(request())[0]) == 200
    assert behind.doors == before
