"""`intarsia serve --processes 2` as a person starts it: real answers, tasks that come, and how all its processes end."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import httpx2 as httpx
import pytest

from intarsia.backbone import Backbone
from serving.served import make, save, solo
from serving.served_process import LONG, Server, eventually, make_long_decoder

ADMIN = "admin-key-0123456789"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return make_long_decoder(tmp_path_factory.mktemp("doors") / "long-gpt2")


@pytest.fixture(scope="module")
def loaded(backbone):
    return Backbone.load(str(backbone), dtype="float32")


@pytest.fixture(scope="module")
def place(loaded, tmp_path_factory):
    """tasks/mood, keys."""
    place = tmp_path_factory.mktemp("served")
    save(loaded, place / "tasks", "mood", 0)
    (place / "keys").write_text(f"admin:{ADMIN}\n")
    (place / "keys").chmod(0o600)
    return place


def started(backbone, place, log):
    return Server(backbone, place / "tasks", place / log, "--keys", str(place / "keys"), "--processes", "2")


@pytest.fixture(scope="module")
def server(backbone, place):
    """The last test ends it."""
    server = started(backbone, place, "log")
    yield server
    server.process.kill()
    server.process.wait()
    server.process.stdout.close()


def doors_of(server):
    """Its door processes."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return [int(one) for one in children if b"doors.door" in Path(f"/proc/{one}/cmdline").read_bytes()]


def ended(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def megabytes(process):
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_it_answers_as_the_task_alone_takes_tasks_and_writes_texts(server, loaded, backbone, place):
    doors = doors_of(server)
    assert len(doors) == 2
    assert max(map(megabytes, doors)) < 80
    (expected,) = solo(loaded, make(loaded, "mood", 0), ["the film was fine"])
    save(loaded, place / "other", "spam", 1, seed=3)
    files = {name: (place / "other" / "spam" / name).read_bytes() for name in ("task.json", "task.safetensors")}
    ask = {"task": "mood", "text": "the film was fine"}
    body = {"model": str(backbone), "prompt": "the film", "max_tokens": 5, "stream": True}
    with server.client(ADMIN) as client:  # one connection for all
        for _ in range(2):
            said = client.post("/v1/classify", json=ask).json()["results"][0]["answers"][0]
            assert said["scores"] == pytest.approx(expected.scores, abs=1e-5)
            assert client.put("/v1/tasks/films", files=files).status_code == 200
            assert client.post("/v1/classify", json={**ask, "task": ["films", "mood"]}).status_code == 200
            with client.stream("POST", "/v1/completions", json=body) as answer:
                assert [line for line in answer.iter_lines() if line][-1] == "data: [DONE]"
            assert "<title>" in client.get("/").text


def test_a_door_that_is_killed_under_load_costs_its_own_connections_and_no_more(server):
    doors, statuses, broken, over = doors_of(server), [], [], threading.Event()

    def classify(number):
        with server.client(ADMIN) as client:
            while not over.is_set():
                try:
                    statuses.append(client.post("/v1/classify", json={"task": "mood", "text": "fine"}).status_code)
                except httpx.TransportError:
                    broken.append(number)

    threads = [threading.Thread(target=classify, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(statuses) > 10)
    os.kill(doors[0], signal.SIGKILL)
    eventually(lambda: len(doors_of(server)) == 2 and set(doors_of(server)) != set(doors))
    time.sleep(1)  # until it is ready
    seen, lost = len(statuses), len(broken)
    eventually(lambda: len(statuses) > seen + 20)
    over.set()
    for thread in threads:
        thread.join(30)
    assert set(statuses) == {200}
    assert 1 <= len(broken) == lost, "none is lost when the new door is there"
    assert len(set(broken)) == lost, "who connects again at once is answered"
    assert server.log.read_text().count("another one is started") == 1


def test_doors_end_with_a_server_that_is_killed(backbone, place):
    server = started(backbone, place, "log of another")
    doors = doors_of(server)
    assert len(doors) == 2
    server.process.send_signal(signal.SIGKILL)
    eventually(lambda: all(map(ended, doors)))
    server.process.wait()
    server.process.stdout.close()


def test_sigterm_under_load_finishes_what_has_begun(server, backbone):
    doors, rows, texts, begun = doors_of(server), [], [], threading.Event()

    def classify():
        with server.client(ADMIN) as client, contextlib.suppress(httpx.TransportError):
            while True:  # until the server takes no more
                rows.append(client.post("/v1/classify", json={"task": "mood", "text": "fine"}).status_code)

    def write():
        body = {"model": str(backbone), "prompt": "the film", "max_tokens": LONG, "stream": True}
        with server.client(ADMIN) as client, client.stream("POST", "/v1/completions", json=body) as answer:
            for line in answer.iter_lines():
                texts.append(line)
                begun.set()

    threads = [threading.Thread(target=work) for work in (write, classify, classify, classify)]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    eventually(lambda: len(rows) > 10)
    status = server.stop()
    for thread in threads:
        thread.join(30)
    assert status == 0, server.log.read_text()
    assert "Traceback" not in server.log.read_text()
    assert texts[-2:] == ["data: [DONE]", ""]
    assert json.loads(texts[-4].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert set(rows) <= {200, 503}
    assert all(map(ended, doors))
