"""Doors that die or hang: they are replaced, and who connects meanwhile is answered."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from intarsia.errors import IntarsiaError
from intarsia.serving.http import create_app, server
from intarsia.serving.http.doors import doors
from serving.doors_served import read, request, served, status
from serving.fake_engine import FakeEngine
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


@pytest.fixture
def hang(monkeypatch):
    """hang(seconds): the next door never becomes ready, and is waited for so long."""
    real, hung = doors._process, []

    def hang(seconds):
        def process(*files):
            monkeypatch.setattr(doors, "READY_SECONDS", 60.0 if hung else seconds)
            if hung:
                return real(*files)
            hung.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=files))
            return hung[0]

        monkeypatch.setattr(doors, "_process", process)
        return hung

    yield hang
    assert hung[0].returncode == -signal.SIGKILL


LATE = "door process {} is not ready after 0 seconds and is killed; another one is started"


def test_a_door_that_hangs_before_it_is_ready_is_replaced(hang, caplog):
    hung = hang(0.2)
    with served(1) as one:
        assert status(one.ask(request())[0]) == 200
    assert [line for line in caplog.messages if "door process" in line] == [LATE.format(hung[0].pid)]


def test_so_is_the_replacement_of_one_that_died(behind, hang, caplog):
    before, hung = eventually(lambda: len(behind.server._doors._ready) == 2 and behind.doors), hang(0.2)
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: hung and LATE.format(hung[0].pid) in caplog.messages)
    eventually(lambda: len(behind.server._doors._ready) == 2)
    assert caplog.messages.count(LATE.format(hung[0].pid)) == 1
    assert status(behind.ask(request())[0]) == 200


def test_a_server_that_ends_does_not_wait_for_a_door_that_is_not_ready(hang):
    with served(1) as one:
        one.server.config.timeout_graceful_shutdown = 300
        hung = hang(60.0)
        os.kill(one.doors[0], signal.SIGKILL)
        eventually(lambda: hung)


def test_a_server_whose_doors_end_before_they_are_ready_does_not_start(monkeypatch):
    monkeypatch.setattr(doors, "_process", lambda *_: subprocess.Popen([sys.executable, "-c", ""]))
    one = server.made(create_app(FakeEngine(), None), grace=5, ready=lambda: None, processes=1)
    with server.listen("127.0.0.1", 0) as sock, pytest.raises(IntarsiaError, match="ended before it was ready"):
        one.run([sock])


def test_doors_are_not_killed_when_the_engines_process_stood_still(behind, monkeypatch):
    monkeypatch.setattr(doors, "KNOCK_SECONDS", 0.1)
    before = eventually(lambda: len(behind.server._doors._ready) == 2 and behind.doors)
    behind.server._doors._loop.call_soon_threadsafe(time.sleep, 0.1 * (doors.HUNG + 10))
    assert status(behind.ask(request())[0]) == 200
    assert behind.doors == before
